"""What the short way remembers of a batch: the running statistics, the counts and the dtypes of the general way."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from batchnorm.kernels.native import abi
from batchnorm.torch import (
    BatchNorm,
    BatchNorm2d,
    accumulate,
    batch_norm,
    fast_step,
    frozen,
    hold_statistics,
    use_running,
)
from choosing import counting, without_fast_step
from namespaces import to_numpy
from options import normal
from tolerance import assert_close

pytestmark = pytest.mark.skipif(isinstance(abi.load(), str), reason=f"no native kernel: {abi.load()}")
FUNCTIONS = getattr(abi.load(), "functions", {})


def held(layer: BatchNorm, x: Tensor) -> None:
    with hold_statistics(layer):
        layer(x)


def accumulated(layer: BatchNorm, x: Tensor) -> None:
    with accumulate(layer, 2):
        layer(x)
        layer(2.0 * x)


def fixed(layer: BatchNorm, x: Tensor) -> None:
    with frozen(layer):
        layer(x)
    with use_running(layer):
        layer(x)


def bad(layer: BatchNorm, x: Tensor) -> None:
    layer(x.where(x < 1.0, torch.inf))


def repeated(layer: BatchNorm, x: Tensor) -> None:
    for reentrant in (True, False):
        checkpoint(layer, x.detach().requires_grad_(), use_reentrant=reentrant).square().sum().backward()


REMEMBERING: list[dict[str, Any]] = [
    {},
    {"momentum": 0.0},
    {"momentum": 1.0},
    {"momentum": None},
    {"running_variance": "biased"},
    {"nonfinite": "propagate"},
    {"track_running_stats": False},
    {"affine": False},
    {"bias": False},
]


@pytest.mark.filterwarnings("ignore:.*1 batch with inf or NaN:RuntimeWarning")
@pytest.mark.parametrize("options", REMEMBERING, ids=str)
@pytest.mark.parametrize("doing", [held, accumulated, fixed, bad, repeated])
@pytest.mark.parametrize(("features", "axis"), [(3, 1), ((8, 3, 1), (0, 1))])
def test_statistics_move_as_on_the_general_way(
    features: Any, axis: Any, doing: Callable[..., None], options: dict[str, Any]
) -> None:
    if doing is fixed and options.get("track_running_stats") is False:
        options = {}
    x = normal((8, 3, 5))
    layer = BatchNorm(features, axis=axis, **options).double()
    twin = copy.deepcopy(layer)
    for each, way in ((layer, nullcontext), (twin, without_fast_step)):
        with way():
            for _ in range(2):
                each(x + 1.0)
                doing(each, x)
    for (name, a), b in zip(layer.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(a.isnan(), b.isnan()), name
        assert_close(to_numpy(a.nan_to_num()), to_numpy(b.nan_to_num()), "float64", 4.0)


@pytest.mark.parametrize("options", [{}, {"running_variance": "biased"}, {"momentum": 1.0}], ids=str)
def test_the_function_moves_statistics_as_on_the_general_way(options: dict[str, Any]) -> None:
    x, moved = normal((8, 3, 5)), []
    for way, calls_expected in ((nullcontext, 1), (without_fast_step, 0)):
        mean, var = torch.zeros(3, dtype=x.dtype), torch.ones(3, dtype=x.dtype)
        with way(), counting(FUNCTIONS, "remember") as calls:
            batch_norm(x, mean, var, training=True, **options)
        assert len(calls) == calls_expected
        moved.append((mean, var))
    for a, b in zip(*moved, strict=True):
        assert_close(to_numpy(a), to_numpy(b), "float64", 4.0)


def test_a_batch_that_is_skipped_is_counted_and_told() -> None:
    layer, x = BatchNorm(3), normal((8, 3), 0, torch.float32)
    layer(x)
    before = layer.running_var.clone()
    with counting(FUNCTIONS, "remember") as calls, pytest.warns(RuntimeWarning, match="1 batch with inf or NaN"):
        layer(x / 0.0)
    assert len(calls) == 1
    assert torch.equal(layer.running_var, before)
    assert (int(layer.num_batches_tracked), int(layer.nonfinite_batches), layer.skipped()) == (1, 1, 1)


def test_autograd_knows_that_the_statistics_have_moved() -> None:
    layer, x = BatchNorm(3), torch.randn(8, 3)
    versions = [b._version for b in (layer.running_mean, layer.running_var)]
    leaf = torch.ones(3, requires_grad=True)
    stale = leaf * layer.running_mean
    layer(x)
    assert [b._version > v for b, v in zip((layer.running_mean, layer.running_var), versions, strict=True)] == [
        True
    ] * 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.sum().backward()


def test_a_layer_made_in_inference_mode_trains_there() -> None:
    with torch.inference_mode():
        layer, x = BatchNorm(3), torch.randn(8, 3)
        layer(x)
        assert layer.num_batches_tracked == 1
    outside = BatchNorm(3)
    with torch.inference_mode():
        outside(x)
    assert torch.equal(outside.running_var, layer.running_var)


def test_a_model_in_16_bits_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), BatchNorm2d(4, activation="relu"), nn.Flatten(), nn.Linear(64, 2)
    ).bfloat16()
    with counting(fast_step, "_apply") as calls:
        model(normal((8, 3, 6, 6), 0, torch.bfloat16)).square().sum().backward()
    assert len(calls) == 1
    assert [p.grad.dtype for p in model.parameters()] == [torch.bfloat16] * 6  # pyright: ignore
    assert model[1].running_mean.dtype == torch.float32
