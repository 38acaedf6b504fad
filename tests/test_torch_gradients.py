"""Derivatives: checked by torch in float64, twice differentiable, and under torch's transformations."""

import copy
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

from batchnorm.torch import BatchNorm, batch_norm
from namespaces import to_numpy
from options import normal
from regimes import parameter_shape
from tolerance import assert_close

SHAPES = [((5, 3), 1), ((3, 2, 4), 1), ((3, 4, 2), -1), ((2, 3, 2, 2), (1, 3))]


def leaves(shape: tuple[int, ...], axis: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = parameter_shape(shape, axis)
    sizes = (shape, features, features)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in sizes]


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_torch_agrees_with_the_gradients(check: Any, training: bool, shape: tuple[int, ...], axis: Any) -> None:
    x, gamma, beta = leaves(shape, axis)
    mean, var = torch.full_like(gamma, 0.3), torch.full_like(beta, 1.7)

    def function(*arguments: torch.Tensor) -> torch.Tensor:
        return batch_norm(arguments[0], mean.detach(), var.detach(), *arguments[1:], training, 0.0, axis=axis)

    assert check(function, (x, gamma, beta))


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("given", ["x", "gamma", "beta"])
def test_each_gradient_can_be_asked_for_alone(check: Any, given: str) -> None:
    arguments = dict(zip(("x", "gamma", "beta"), leaves((4, 3), 1), strict=True))

    def function(wanted: torch.Tensor) -> torch.Tensor:
        others = {name: value.detach() for name, value in arguments.items()} | {given: wanted}
        return batch_norm(others["x"], None, None, others["gamma"], others["beta"], True)

    assert check(function, (arguments[given],))


def test_gradients_flow_only_where_they_are_wanted() -> None:
    x, gamma, beta = leaves((4, 3), 1)
    y = batch_norm(x.detach(), None, None, gamma, beta.detach(), True)
    (only,) = torch.autograd.grad(y.square().sum(), [gamma])
    assert only.shape == (3,)
    assert not batch_norm(x.detach(), None, None, training=True).requires_grad


def test_second_derivatives_equal_torchs() -> None:
    x, gamma, beta = leaves((6, 3), 1)

    def penalty(function: Any) -> torch.Tensor:
        y = function(x, None, None, gamma, beta, training=True)
        (slope,) = torch.autograd.grad((y**3).sum(), [x], create_graph=True)
        return slope.square().sum()

    mine, torchs = (torch.autograd.grad(penalty(f), [x, gamma]) for f in (batch_norm, torch.nn.functional.batch_norm))
    for a, b in zip(mine, torchs, strict=True):
        assert_close(to_numpy(a), to_numpy(b), "float64", to_numpy(b.abs().max()))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_stacked_replicas_train_as_they_do_alone(momentum: float | None) -> None:
    torch.manual_seed(0)
    alone = [BatchNorm(3, momentum=momentum) for _ in range(4)]
    for layer in alone:
        torch.nn.init.uniform_(layer.weight)
    parameters, buffers = stack_module_state(alone)
    skeleton = copy.deepcopy(alone[0]).to("meta")

    def loss(p: dict[str, Any], b: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
        return (functional_call(skeleton, (p, b), (x,)) * x.sigmoid()).square().sum()

    for x in torch.randn(2, 4, 8, 3):
        gradients = vmap(grad(loss))(parameters, buffers, x)
        for i, layer in enumerate(alone):
            layer.zero_grad()
            (layer(x[i]) * x[i].sigmoid()).square().sum().backward()
            for name, parameter in layer.named_parameters():
                assert_close(to_numpy(gradients[name][i]), to_numpy(parameter.grad), "float32", 4.0)
    for i, layer in enumerate(alone):
        for name, buffer in layer.named_buffers():
            assert_close(to_numpy(buffers[name][i]), to_numpy(buffer), "float32")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch itself, once
def test_tangents_in_inference_are_those_of_an_affine_map() -> None:
    layer, (x, tangent) = BatchNorm(3, eps=0.5).double().eval(), normal((2, 8, 3))
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
    assert found is not None
    assert_close(to_numpy(found), to_numpy(layer(tangent)), "float64", 4.0)  # the shift of a new layer is 0


@pytest.mark.parametrize("transposed", [False, True])  # as torch has a name for it, or not
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_what_is_negated_lazily_has_its_sign(activation: Any, transposed: bool) -> None:
    layer, (x, dy) = BatchNorm(3, activation=activation, momentum=0.0), normal((2, 5, 3, 5), 0, torch.float32)
    x, dy = (x.transpose(0, 2), dy.transpose(0, 2)) if transposed else (x, dy)
    steps = []
    for negate in (torch.neg, torch._neg_view):  # the memory of a view still holds what it negates
        leaf, plain = negate(x).requires_grad_(), torch.neg(x).requires_grad_()
        y = layer(leaf)
        steps.append((y, *torch.autograd.grad(y, leaf, dy), *torch.autograd.grad(layer(plain), plain, negate(dy))))
    assert torch._neg_view(x).is_neg()
    for a, b in zip(*steps, strict=True):
        assert_close(to_numpy(a), to_numpy(b), "float32", 4.0)


def test_jacrev_equals_a_row_of_gradients_for_each_output() -> None:
    x, gamma, _ = leaves((4, 3), 1)
    jacobian = jacrev(lambda v: batch_norm(v, None, None, gamma.detach(), training=True))(x.detach())
    y = batch_norm(x, None, None, gamma, training=True)
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in y.ravel()]
    assert_close(to_numpy(jacobian).reshape(12, 4, 3), to_numpy(torch.stack(rows)), "float64")


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # by torch.compile itself
@pytest.mark.parametrize("momentum", [0.1, None])
def test_one_graph_holds_the_training_step(momentum: float | None) -> None:
    layer, x = BatchNorm(3, momentum=momentum), normal((8, 3), 0, torch.float32)  # of others the last bit may differ
    compiled = copy.deepcopy(layer)
    y = torch.compile(compiled, backend="eager", fullgraph=True)(x)
    assert torch.equal(y, layer(x))
    assert torch.equal(compiled.running_var, layer.running_var)
    assert compiled.num_batches_tracked == 1


@pytest.mark.parametrize(("activation", "times"), [(None, 1.0), ("relu", 2.0), ("gelu", 1.0)])
@pytest.mark.parametrize("training", [True, False])
def test_little_more_than_the_input_is_kept_for_the_backward(activation: Any, times: float, training: bool) -> None:
    x = torch.randn(32, 8, 16, 16, dtype=torch.bfloat16, requires_grad=True)
    kept: dict[int, int] = {}

    def note(saved: torch.Tensor) -> torch.Tensor:
        kept[saved.data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    layer = BatchNorm(8, activation=activation).bfloat16().train(training)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        layer(x)
    a_feature = 4 * 8 * 8  # bytes: a few arrays of one float32 a feature
    assert sum(kept.values()) <= times * x.untyped_storage().nbytes() + a_feature


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_a_forward_by_one_kernel_has_a_backward_by_another(activation: Any) -> None:
    x = normal((6, 3, 5)).requires_grad_()
    layer = BatchNorm(3, activation=activation).double()
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    with forward_ad.dual_level():  # where the eager kernel runs
        y = layer(x)
    (outside,) = torch.autograd.grad(y.square().sum(), x)
    y = layer(x)
    with forward_ad.dual_level():
        (inside,) = torch.autograd.grad(y.square().sum(), x)
    for got in (outside, inside):
        assert_close(to_numpy(got), to_numpy(expected), "float64", 16.0)
