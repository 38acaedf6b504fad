"""A layer called several times before its backward: each repetition finds what its own first forward has found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from batchnorm.errors import BatchNormError
from batchnorm.torch import BatchNorm, Renorm, hold_statistics
from batchnorm.torch.recompute import CALLS
from namespaces import to_numpy
from tolerance import assert_close

RENORM = {"renorm": Renorm(rmax=1.5, dmax=0.5, momentum=0.2), "momentum": 0.5}


def batch(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(shape or (8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shared(layer: BatchNorm, call: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Call one layer twice in one checkpointed part."""
    return call(lambda z: layer(layer(z).square() + z), x).pow(3).sum()


def two_parts(layer: BatchNorm, call: Callable[..., Tensor], x: Tensor) -> Tensor:
    return (call(layer, x).pow(3) + call(layer, 2.0 * x + x.sin()).pow(2)).sum()


def held_between(layer: BatchNorm, call: Callable[..., Tensor], x: Tensor) -> Tensor:
    y = call(layer, x)
    with hold_statistics(layer):
        worst = call(layer, x + 0.5 * x.sin())
    return (y.pow(3) + worst.pow(2)).sum()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("loss", [shared, two_parts, held_between])
def test_every_repetition_finds_its_own_statistics(loss: Any, reentrant: bool) -> None:
    def gradient(call: Callable[..., Tensor]) -> tuple[Tensor, BatchNorm]:
        layer = BatchNorm(3, **RENORM).double()
        for seed in (5, 6):
            layer(batch(seed))
        x = batch().requires_grad_()
        loss(layer, call, x).backward()
        assert x.grad is not None
        return x.grad, layer

    expected, plain = gradient(lambda function, x: function(x))
    got, layer = gradient(lambda function, x: checkpoint(function, x, use_reentrant=reentrant))
    assert_close(to_numpy(got), to_numpy(expected), "float64", float(expected.abs().max()))
    assert layer.num_batches_tracked == plain.num_batches_tracked
    assert torch.equal(layer.renorm_stddev, plain.renorm_stddev)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_repetition_by_running_statistics_finds_those_of_its_first_forward(rows: int) -> None:
    def gradient(call: Callable[..., Tensor]) -> Tensor:
        layer, x = BatchNorm(3, small_batch="running").double(), batch(0, rows, 3).requires_grad_()
        y = call(lambda z: layer(z, weights=torch.zeros(rows)).square(), x)
        layer(100.0 * batch(1))
        y.sum().backward()
        assert x.grad is not None
        return x.grad

    expected = gradient(lambda function, x: function(x))
    got = gradient(lambda function, x: checkpoint(function, x, use_reentrant=False))
    assert_close(to_numpy(got), to_numpy(expected), "float64", 4.0)


def test_a_call_that_is_forgotten_by_its_repetition_is_an_error() -> None:
    layer = BatchNorm(3, **RENORM)
    ys = [checkpoint(layer, batch(seed).float().requires_grad_(), use_reentrant=False) for seed in range(CALLS + 1)]
    with pytest.raises(BatchNormError, match=f"more than {CALLS} calls"):
        ys[0].sum().backward()
    ys[-1].sum().backward()


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # by torch.compile itself
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_compiled_layer_in_a_checkpointed_part_counts_once(reentrant: bool) -> None:
    torch.compiler.reset()
    layer, x = BatchNorm(3), torch.randn(8, 3, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        checkpoint(compiled, x, use_reentrant=reentrant).square().sum().backward()
    assert layer.num_batches_tracked == 2
