"""Where one way through the layer meets another: the right value on both sides, whatever ran before."""

import copy
import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from batchnorm import numpy as by_numpy
from batchnorm.core.passes import NormInputs
from batchnorm.core.spec import NormSpec
from batchnorm.errors import ArgumentError
from batchnorm.layout import axes_of
from batchnorm.torch import BatchNorm, batch_norm, operators, use_running
from batchnorm.torch.backends import plan_tensors
from namespaces import to_ml_dtypes, to_numpy
from options import normal
from tolerance import assert_close


def gradients(function: Any, layer: BatchNorm, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    return list(torch.autograd.grad(function(leaf).square().sum(), [leaf, *layer.parameters()]))


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # by torch.compile itself
def test_statistics_that_move_before_the_backward_in_one_graph() -> None:
    torch.compiler.reset()
    layer, x = BatchNorm(3, momentum=0.5), normal((8, 3), 0, torch.float32) * 3.0 + 2.0
    twin = copy.deepcopy(layer)

    def both(of: BatchNorm) -> Any:
        def run(t: Tensor) -> Tensor:
            with use_running(of):
                y = of(t)
            return y + of(t)

        return run

    def functional(t: Tensor) -> Tensor:
        mean, var = torch.zeros(3), torch.ones(3)
        y = batch_norm(t, mean, var, layer.weight, layer.bias)
        return y + batch_norm(t, mean, var, layer.weight, layer.bias, True)

    for function, eager in ((both(layer), both(twin)), (functional, functional)):
        compiled = torch.compile(function, backend="aot_eager")
        got, expected = gradients(compiled, layer, x), gradients(eager, twin if eager is not function else layer, x)
        for a, b in zip(got, expected, strict=True):
            assert_close(to_numpy(a), to_numpy(b), "float32", 8.0 + to_numpy(b.abs().max()))


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
def test_compiled_inference_outlives_an_update() -> None:
    torch.compiler.reset()
    layer, x = BatchNorm(3).eval(), normal((8, 3), 0, torch.float32).requires_grad_()
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    y = torch.compile(layer, backend="aot_eager")(x).square().sum()
    layer.running_var.mul_(4.0)  # pyright: ignore
    (got,) = torch.autograd.grad(y, x)
    assert_close(to_numpy(got), to_numpy(expected), "float32", 8.0)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_memory_that_was_shrunk_is_not_read(training: bool, residual: bool) -> None:
    whole, shrunk = torch.randn(64, 4), torch.randn(64, 4)
    shrunk.untyped_storage().resize_(64)
    x, added = (whole, shrunk) if residual else (shrunk, None)
    with pytest.raises(ArgumentError, match=r"`(input|residual)` has no memory"):
        batch_norm(x, torch.zeros(4), torch.ones(4), training=training, residual=added)


def test_buffers_that_are_set_to_others_with_gaps() -> None:
    layer, x, numbers = BatchNorm(4).eval(), torch.randn(8, 4), torch.arange(8.0)
    for view in (numbers[:4], numbers[::2]):  # the same address, and as many numbers
        layer.running_var.data = view + 0.0 if view.is_contiguous() else view  # pyright: ignore
    layer.running_mean.data = numbers[:4]  # pyright: ignore
    layer(x)
    layer.running_mean.data = numbers[::2]  # pyright: ignore
    expected = (x - numbers[::2]) / (layer.running_var + layer.eps).sqrt()  # pyright: ignore
    assert_close(to_numpy(layer(x).detach()), to_numpy(expected), "float32", 64.0)


@dataclasses.dataclass(frozen=True)
class Shifted:
    """An adjustment that is equal to any other of its kind."""

    by: Any = dataclasses.field(compare=False)

    def __call__(self, shape: Any) -> tuple[Any, Any]:
        return torch.ones(1), torch.as_tensor(self.by)


@dataclasses.dataclass
class Unhashable:
    """An adjustment that has no hash."""

    by: Any

    def __call__(self, shape: Any) -> tuple[Any, Any]:
        return torch.ones(1), torch.as_tensor(self.by)


@pytest.mark.parametrize("kind", [Shifted, Unhashable])
def test_an_adjustment_is_the_one_that_is_given(kind: Any) -> None:
    x, layer = torch.randn(16, 3), BatchNorm(3)
    for shift in (1.0, 5.0):
        y = batch_norm(x, None, None, training=True, adjustment=kind(shift))
        assert y.mean().item() == pytest.approx(shift)
        layer.adjustment = kind(shift)
        assert layer(x).mean().item() == pytest.approx(shift)


@pytest.mark.parametrize(
    ("name", "right", "wrong"), [("axis", 1, True), ("axis", 1, 1.0), ("virtual_batch_size", 3, 3.0)]
)
def test_what_equals_a_right_option_is_not_one(name: str, right: Any, wrong: Any) -> None:
    x, layer = torch.randn(12, 3), BatchNorm(3, **{name: right})
    batch_norm(x, None, None, training=True, **{name: right})
    layer(x)
    setattr(layer, name, wrong)
    for call in (lambda: batch_norm(x, None, None, training=True, **{name: wrong}), lambda: layer(x)):
        with pytest.raises(ArgumentError, match=name):
            call()


@pytest.mark.parametrize("wrong", [np.ones(2), [1e-5]])
def test_options_that_cannot_be_remembered_are_named(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="`eps` must be"):
        batch_norm(torch.randn(4, 3), None, None, training=True, eps=wrong)


def test_nothing_gives_nothing() -> None:
    for shape in ((1, 0), (4, 0), (0, 3), (2, 3, 0), (4, 0, 5)):
        layer = BatchNorm(shape[1], virtual_batch_size=2)
        assert layer(torch.zeros(shape)).shape == shape
        assert layer.num_batches_tracked == 0
    layer = BatchNorm(3, adjustment=lambda _: (torch.ones(6, 3), torch.zeros(6, 3)))
    assert layer(torch.zeros(0, 3)).shape == (0, 3)


def test_a_pickle_of_another_version_runs() -> None:
    layer = BatchNorm(3)
    state = {k: v for k, v in vars(layer).items() if k not in ("_ready_call", "hold_depth", "accumulated")}
    other = BatchNorm.__new__(BatchNorm)
    other.__setstate__({**state, "checked": None, "collected": None})
    other(torch.randn(8, 3))
    assert other.num_batches_tracked == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_backward_of_a_residual_of_another_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 6, 5).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    residual = torch.randn(4, 3, 6, 5).requires_grad_()
    layer, dy = BatchNorm(3).to(dtype), torch.randn(4, 3, 6, 5).to(dtype)
    dx, dz = torch.autograd.grad(layer(x, residual=residual), [x, residual], dy)
    (expected,) = torch.autograd.grad(layer(x), x, dy)
    assert (dx.dtype, dx.stride(), dz.dtype) == (dtype, x.stride(), torch.float32)
    assert_close(to_numpy(dx), to_numpy(expected), str(dtype).removeprefix("torch."), 16.0)


def test_hooks_may_bring_numbers_back_in_another_dtype_under_weights() -> None:
    x, weights = torch.randn(8, 3, 5).requires_grad_(), torch.rand(8, 1) + 0.5
    layer = BatchNorm(3)
    expected = torch.autograd.grad(layer(x, weights=weights).square().sum(), [x, layer.weight])
    double = torch.autograd.graph.saved_tensors_hooks(lambda t: t.double() if t.is_floating_point() else t, lambda t: t)
    with double:
        y = layer(x, weights=weights)
    for a, b in zip(torch.autograd.grad(y.square().sum(), [x, layer.weight]), expected, strict=True):
        assert_close(to_numpy(a), to_numpy(b), "float32", 64.0)


def test_operators_are_defined_once() -> None:
    importlib.reload(operators)
    assert callable(torch.ops.batchnorm.moments)


def test_a_dtype_that_no_kernel_serves_is_named_once() -> None:
    plan = plan_tensors(NormSpec(), NormInputs(torch.zeros(4, 3).to(torch.float8_e4m3fn)), axes_of(2, 1))
    assert plan.note == "eager: the native kernel has no torch.float8_e4m3fn"


def test_plans_of_other_options_are_other_plans() -> None:
    x, axes = torch.randn(8, 3), axes_of(2, 1)
    plain = plan_tensors(NormSpec(), NormInputs(x), axes)
    assert plan_tensors(NormSpec(), NormInputs(torch.randn(8, 3)), axes) is plain
    for spec, inputs in (
        (NormSpec(eps=0.5), NormInputs(x)),
        (NormSpec(activation="relu"), NormInputs(x)),
        (NormSpec(), NormInputs(x.double())),
        (NormSpec(), NormInputs(x, residual=x)),
        (NormSpec(), NormInputs(x, weights=torch.ones(8, 1))),
        (NormSpec(), NormInputs(torch.randn(3, 8).t())),
    ):
        assert plan_tensors(spec, inputs, axes) is not plain
    far, near = (batch_norm(x, None, None, training=True, eps=eps) for eps in (100.0, 1e-5))
    assert far.abs().max() < 0.5 < near.abs().max()


@pytest.mark.parametrize("learned", [False, True])
def test_bfloat16_of_numpy(learned: bool) -> None:
    x = to_ml_dtypes(np.random.default_rng(0).normal(size=(64, 3)), "bfloat16")
    gamma, beta = (np.full(3, 2.0), np.ones(3)) if learned else (None, None)
    f = by_numpy.train(x, gamma, beta)
    assert (f.y.dtype, f.mean.dtype) == (x.dtype, np.float32)
    assert by_numpy.backward(np.ones_like(x), f).x.dtype == x.dtype
    truth = (x.astype(np.float64) - f.mean) / np.sqrt(f.var + 1e-5)
    assert_close(f.y, truth * 2.0 + 1.0 if learned else truth, "bfloat16", 8.0)
    assert by_numpy.infer(x[::2], f.mean.ravel(), f.var.ravel(), gamma, beta).y.dtype == x.dtype


def test_arrays_may_change_between_forward_and_backward() -> None:
    x, gamma = np.random.default_rng(0).normal(size=(16, 3)), np.ones(3)
    mean, var = np.zeros(3), np.ones(3)
    for f in (by_numpy.train(x, gamma), by_numpy.infer(x, mean, var, gamma)):
        expected = by_numpy.backward(x, f).x
        gamma *= 10.0
        var *= 25.0
        np.testing.assert_array_equal(by_numpy.backward(x, f).x, expected)
