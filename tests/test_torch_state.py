"""What the layer remembers: never changed by a failed call, never rounded to 16 bits, kept by every way of copying."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from batchnorm.errors import ArgumentError, BatchNormError, DtypeError, ShapeError
from batchnorm.torch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, frozen
from namespaces import to_numpy
from tolerance import assert_close

HIGH = 100.3  # bfloat16 would make it 100.5, float16 100.3125


def trained(**options: Any) -> BatchNorm:
    layer = BatchNorm(3, **options)
    layer(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    return layer


def snapshot(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in layer.state_dict().items()}


def assert_unchanged(layer: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = layer.state_dict()
    assert list(after) == list(before)
    assert [key for key in before if after[key].dtype != before[key].dtype] == []
    assert [key for key in before if not torch.equal(after[key], before[key])] == []


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.ones(3), ShapeError),
        (torch.tensor(1.0), ShapeError),
        (torch.randn(4, 5), ShapeError),
        (torch.randn(4, 1), ShapeError),
        (torch.randn(3, 4), ShapeError),
        (torch.randn(1, 3), ShapeError),
        (torch.randn(1, 3, 1), ShapeError),
        (torch.ones(4, 3, dtype=torch.int64), DtypeError),
        (torch.ones(4, 3, dtype=torch.bool), DtypeError),
        (torch.ones(4, 3, dtype=torch.complex64), DtypeError),
        ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], DtypeError),
        (None, DtypeError),
    ],
)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_call_with_a_bad_input_changes_no_state(x: Any, error: type[Exception], momentum: float | None) -> None:
    layer = trained(momentum=momentum)
    before = snapshot(layer)
    with pytest.raises(error):
        layer(x)
    assert_unchanged(layer, before)
    layer(torch.randn(4, 3))
    assert layer.num_batches_tracked == 2


@pytest.mark.parametrize(("layer", "rank"), [(BatchNorm1d(3), 4), (BatchNorm2d(3), 3), (BatchNorm3d(3), 4)])
def test_a_call_with_a_bad_rank_changes_no_state(layer: BatchNorm, rank: int) -> None:
    before = snapshot(layer)
    with pytest.raises(ShapeError):
        layer(torch.randn(3, 3, 4, 5)[(0,) * (4 - rank)])
    assert_unchanged(layer, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("momentum", 1.5),
        ("momentum", -0.1),
        ("momentum", "0.1"),
        ("eps", 0.0),
        ("running_variance", "neither"),
        ("axis", 2),
        ("running_var", None),
        ("weight", torch.nn.Parameter(torch.ones(4))),
    ],
)
def test_a_call_with_an_option_set_wrong_later_changes_no_state(name: str, value: object) -> None:
    layer = trained()
    setattr(layer, name, value)
    before = snapshot(layer)
    with pytest.raises((ArgumentError, ShapeError)):
        layer(torch.randn(4, 3))
    assert_unchanged(layer, before)


def test_inference_changes_no_state() -> None:
    layer = trained().eval()
    before = snapshot(layer)
    layer(torch.randn(4, 3)).sum().backward()
    assert_unchanged(layer, before)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (4, 3, 0)])
def test_an_empty_batch_gives_an_empty_output_and_is_not_counted(
    shape: tuple[int, ...], momentum: float | None
) -> None:
    layer = trained(momentum=momentum)
    before = snapshot(layer)
    x = torch.empty(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == shape
    assert x.grad.shape == shape
    assert torch.equal(layer.weight.grad, torch.zeros(3))
    assert torch.equal(layer.bias.grad, torch.zeros(3))
    assert_unchanged(layer, before)


def test_no_features_is_no_error() -> None:
    assert BatchNorm(0)(torch.empty(4, 0)).shape == (4, 0)


def test_one_value_per_channel_is_for_inference_only() -> None:
    layer, x = trained(), torch.full((1, 3), 5.0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(x)
    expected = (x - layer.running_mean) / (layer.running_var + layer.eps).sqrt()
    assert_close(to_numpy(layer.eval()(x)), to_numpy(expected), "float32", 4.0)


CASTS: dict[str, Callable[[torch.nn.Module], object]] = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "to": lambda m: m.to(torch.bfloat16),
    "type": lambda m: m.type(torch.float16),
    "to and fro": lambda m: m.bfloat16().float().half(),
}


@pytest.mark.parametrize("cast", CASTS)
def test_running_statistics_survive_a_cast_to_16_bits_unrounded(cast: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), BatchNorm(3))
    layer = model[1]
    layer.running_mean.fill_(HIGH)
    layer.running_var.fill_(HIGH)
    CASTS[cast](model)
    assert layer.weight.dtype.itemsize == 2
    for buffer in (layer.running_mean, layer.running_var):
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer, torch.full((3,), HIGH))


def test_running_statistics_in_bfloat16_models_reach_their_goal() -> None:
    layer = BatchNorm(3).bfloat16()
    x = torch.full((8, 3), 100.0, dtype=torch.bfloat16)
    for _ in range(200):
        layer(x)
    assert_close(to_numpy(layer.running_mean), [100.0] * 3, "float32", 100.0)


def test_precision_follows_dtype_upwards() -> None:
    assert BatchNorm(3, dtype=torch.float16).running_var.dtype == torch.float32
    assert BatchNorm(3, dtype=torch.float64).running_var.dtype == torch.float64
    assert BatchNorm(3).double().running_mean.dtype == torch.float64
    assert BatchNorm(3)(torch.randn(4, 3, dtype=torch.float64)).dtype == torch.float64
    assert BatchNorm(3)(torch.randn(4, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def pickled(layer: BatchNorm) -> BatchNorm:
    return pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_has_the_options_and_a_state_of_its_own(copied: Callable[[BatchNorm], BatchNorm]) -> None:
    layer = trained(axis=-1, running_variance="biased", momentum=None)
    twin, before = copied(layer), snapshot(layer)
    assert repr(twin) == repr(layer)
    assert_unchanged(twin, before)
    twin(torch.randn(8, 3))
    assert_unchanged(layer, before)
    assert twin.num_batches_tracked == 2


def test_the_meta_device_holds_shapes_only() -> None:
    layer = BatchNorm(3, device="meta", dtype=torch.bfloat16)
    assert layer.running_mean.is_meta
    assert layer(torch.empty(4, 3, 5, device="meta", dtype=torch.bfloat16)).shape == (4, 3, 5)
    layer.to_empty(device="cpu").reset_parameters()
    assert torch.equal(layer.running_var, torch.ones(3))
    assert (layer.weight.dtype, layer.running_var.dtype) == (torch.bfloat16, torch.float32)


def test_reset_begins_anew() -> None:
    layer, fresh = trained(), BatchNorm(3)
    layer.reset_parameters()
    assert_unchanged(layer, snapshot(fresh))


def _narrow(layer: BatchNorm) -> None:
    layer.weight.data = layer.weight.data[:2]


def _replace_weight(layer: BatchNorm) -> None:
    layer.weight = nn.Parameter(torch.full((3,), 2.0))


def _move_weight(layer: BatchNorm) -> None:
    layer.weight.data = torch.full((3,), 2.0)


def _write_weight(layer: BatchNorm) -> None:
    layer.weight.data.fill_(2.0)


def _replace_mean(layer: BatchNorm) -> None:
    layer.running_mean = torch.ones(3)


def _widen(layer: BatchNorm) -> None:
    layer.double()


def _widen_mean(layer: BatchNorm) -> None:
    layer.running_mean = torch.ones(3, dtype=torch.float64)


def _drop_statistics(layer: BatchNorm) -> None:
    layer.running_mean = layer.running_var = layer.num_batches_tracked = None


def _drop_bias(layer: BatchNorm) -> None:
    layer.bias = None


def _load(layer: BatchNorm) -> None:
    state = {name: torch.full_like(t, 2) for name, t in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def _parametrize(layer: BatchNorm) -> None:
    parametrize.register_parametrization(layer, "weight", nn.Softplus())


CHANGES: list[Callable[[BatchNorm], object]] = [
    *(_narrow, _replace_weight, _move_weight, _write_weight, _replace_mean, _widen, _widen_mean, _drop_statistics),
    *(_drop_bias, _load, _parametrize, BatchNorm.freeze, nn.Module.bfloat16),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_layer_that_has_changed_is_checked_again(change: Callable[[BatchNorm], object], training: bool) -> None:
    layer, x = BatchNorm(3).train(training), torch.randn(4, 3, 5)
    with torch.set_grad_enabled(training):
        layer(x)
        change(layer)
        assert_as_if_new(layer, x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("momentum", 0.9), ("momentum", None), ("momentum", "high"), ("eps", 1.0), ("eps", 0.0), ("axis", -1),
        ("axis", 0), ("axis", "C"), ("activation", "silu"), ("activation", "relu6"), ("virtual_batch_size", 2),
        ("running_variance", "biased"), ("nonfinite", "never"), ("small_batch", "allow"), ("ranks", (2,)),
        ("track_running_stats", False), ("adjustment", lambda shape: (torch.full((), 2.0), torch.zeros(()))),
    ],
)  # fmt: skip
def test_an_option_that_has_changed_is_checked_again(name: str, value: object, training: bool) -> None:
    layer, x = BatchNorm(3).train(training), torch.randn(4, 3, 3)
    with torch.set_grad_enabled(training):
        layer(x)
        setattr(layer, name, value)
        assert_as_if_new(layer, x)


@pytest.mark.parametrize("training", [True, False])
def test_an_input_that_has_changed_is_checked_again(training: bool) -> None:
    layer, x = BatchNorm(3).train(training), torch.randn(6, 3, 4)
    with torch.set_grad_enabled(training):
        others = (x.transpose(0, 2), x.double(), x.bfloat16(), x[..., 0], x[:1, :, 0], x[:, :2])
        for other in (torch.cat((x, x)), x[:1], x[::2], *others):
            layer(x)
            assert_as_if_new(layer, other)


def assert_as_if_new(layer: BatchNorm, x: Tensor) -> None:
    """Check that the next call does what it does to a copy, which knows nothing of the calls before."""
    twin = copy.deepcopy(layer)
    twin._ready_call = None
    outcomes: list[Tensor | str] = []
    for each in (twin, layer):
        try:
            outcomes.append(each(x).detach())
        except BatchNormError as error:
            outcomes.append(str(error))
    expected, got = outcomes
    if isinstance(expected, str):
        assert got == expected
    else:
        assert isinstance(got, Tensor)
        assert torch.equal(got, expected)
    assert_unchanged(layer, snapshot(twin))


NESTED = "BatchNorm: `input` must be a dense tensor, got a nested one (pad it, `.to_padded_tensor(0.0)`, and give "


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: BatchNorm2d(3, epsilon=1e-3),
            TypeError,
            "BatchNorm2d() got an unexpected keyword argument 'epsilon' (it is `eps` here)",
        ),
        (lambda: BatchNorm(3, sizes=1), TypeError, "BatchNorm() got an unexpected keyword argument 'sizes'"),
        (
            lambda: BatchNorm(3)(torch.ones(2, 3), mask=None),
            TypeError,
            "BatchNorm.forward() got an unexpected keyword argument 'mask' (it is `weights` here)",
        ),
        (
            lambda: BatchNorm2d(3)(torch.ones(2, 5, 4, 3)),
            ShapeError,
            "BatchNorm2d: expected 3 features along axis=1, as num_features=3 says, got 5 in an input of shape "
            "(2, 5, 4, 3) (axis=-1 has 3)",
        ),
        (
            lambda: BatchNorm(3)(torch.ones(2, 3, dtype=torch.complex64)),
            DtypeError,
            "BatchNorm: `input` must be a floating-point tensor, got torch.complex64 (make real and imaginary parts "
            "features of `torch.view_as_real` first)",
        ),
        (
            lambda: BatchNorm(3)(torch.nested.nested_tensor([torch.ones(2, 3)], layout=torch.jagged)),
            DtypeError,
            f"{NESTED}`weights=`, a mask of what is no padding)",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_is_wrong_is_said_in_the_words_of_who_calls(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == says


def test_a_freezer_tells_what_it_holds() -> None:
    model = nn.Sequential(BatchNorm(3), *(BatchNorm(3) for _ in range(4)))
    assert repr(frozen(model)) == "<frozen: 0 of 5 layers, 0, 1, 2 and 2 more>"
    assert repr(frozen(model).apply()).startswith("<frozen: 5 of 5 layers")


def test_the_package_says_where_its_parts_are() -> None:
    with pytest.raises(ImportError, match=r"is in batchnorm\.torch: from batchnorm\.torch import BatchNorm2d"):
        exec("from batchnorm import BatchNorm2d")
    with pytest.raises(ImportError, match="cannot import name 'Layer'"):
        exec("from batchnorm import Layer")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("left", [0, 4])
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_storage_that_was_freed_is_not_read(name: str, left: int, training: bool) -> None:
    layer, x = BatchNorm2d(3).train(training), torch.randn(4, 3, 5, 5)
    for _ in range(2):
        tensor = getattr(layer, name)
        tensor.untyped_storage().resize_(left)
        with pytest.raises(ArgumentError, match=f"BatchNorm2d: `{name}` has no memory for its 3 numbers"):
            layer(x)
        tensor.untyped_storage().resize_(12)
        with torch.no_grad():
            tensor.fill_(1.0)
        layer(x)  # and once more, now that a call has been served


def test_numbers_of_numpy_are_numbers() -> None:
    layer = BatchNorm2d(np.int64(3), momentum=np.float32(0.5))
    assert (type(layer.num_features), type(layer.momentum)) == (int, float)
    layer(torch.randn(4, 3, 5, 5))
    assert BatchNorm((1, np.int32(3), 1), axis=(1, 0)).weight.shape == (1, 3, 1)
