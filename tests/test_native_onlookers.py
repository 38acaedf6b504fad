"""Who hands the kernel something that is more, or less, than its memory: numbers must be right all the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize, prune

from batchnorm.errors import ArgumentError
from batchnorm.torch import BatchNorm, batch_norm
from tolerance import assert_same_to_project_bound


def arrays(**options: Any) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, residual, dy = (torch.randn(8, 4, 5, 5) + 1 for _ in range(3))
    if options.get("last"):
        x, residual, dy = (t.to(memory_format=torch.channels_last) for t in (x, residual, dy))
    return x.requires_grad_(), residual.requires_grad_(), dy


def by_torch(x: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
    y = torch.nn.functional.batch_norm(x, None, None, training=True)
    y = y if residual is None else y + residual
    return torch.relu(y) if activation else y


OURS: dict[str, Callable[..., Tensor]] = {
    "layer": lambda x, residual=None, activation=None: BatchNorm(4, affine=False, activation=activation)(x, residual),
    "function": lambda x, residual=None, activation=None: batch_norm(
        x, None, None, training=True, residual=residual, activation=activation
    ),
}


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("way", OURS)
def test_hooks_may_bring_saved_tensors_back_in_another_layout(way: str, activation: str | None) -> None:
    x, residual, dy = arrays(last=True)
    pack, unpack = lambda t: (t.shape, t.flatten().clone()), lambda kept: kept[1].reshape(kept[0])
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = OURS[way](x, residual, activation)
    found = torch.autograd.grad(y, (x, residual), dy)
    for ours, torchs in zip(
        found, torch.autograd.grad(by_torch(x, residual, activation), (x, residual), dy), strict=True
    ):
        assert_same_to_project_bound(ours, torchs)


@pytest.mark.parametrize("way", OURS)
def test_signs_are_found_whichever_kernel_runs_the_backward(way: str) -> None:
    x, residual, dy = arrays()
    expected = torch.autograd.grad(by_torch(x, residual, "relu"), (x, residual), dy)
    y = OURS[way](x, residual, "relu")
    with forward_ad.dual_level():  # where the native kernel does not run
        found = torch.autograd.grad(y, (x, residual), dy)
    again = torch.autograd.grad(OURS[way](x, residual, "relu"), (x, residual), dy, create_graph=True)
    for ours, differentiable, torchs in zip(found, again, expected, strict=True):
        assert_same_to_project_bound(ours, torchs)
        assert_same_to_project_bound(differentiable.detach(), torchs)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("way", OURS)
def test_many_gradients_are_taken_at_once(way: str, activation: str | None) -> None:
    x, residual, dy = arrays()
    many = torch.stack([dy, 2.0 * dy])
    found = torch.autograd.grad(OURS[way](x, residual, activation), (x, residual), many, is_grads_batched=True)
    expected = torch.autograd.grad(by_torch(x, residual, activation), (x, residual), many, is_grads_batched=True)
    for ours, torchs in zip(found, expected, strict=True):
        assert_same_to_project_bound(ours, torchs)


def test_weights_that_are_computed_serve() -> None:
    x, _, dy = arrays()
    pruned, torchs = BatchNorm(4), torch.nn.BatchNorm2d(4)
    for layer in (pruned, torchs):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    assert_same_to_project_bound(pruned(x).detach(), torchs(x).detach())
    doubled = BatchNorm(4)
    parametrize.register_parametrization(doubled, "weight", torch.nn.Hardtanh(0.0, 0.5))
    doubled(x).backward(dy)
    assert_same_to_project_bound(doubled(x).detach(), 0.5 * by_torch(x).detach())


@pytest.mark.parametrize(
    "options", [{"pre_dispatch": True}, {"tracing_mode": "symbolic"}, {"tracing_mode": "fake"}, {}]
)
def test_a_tracer_sees_what_happens(options: dict[str, Any]) -> None:
    x = arrays()[0].detach()
    graph = make_fx(lambda t: batch_norm(t, None, None, training=True), **options)(x)
    other = 3.0 * x + torch.randn_like(x)
    assert_same_to_project_bound(graph(other), by_torch(other))


def test_views_of_signs_and_of_nothing_are_resolved() -> None:
    x, _, _ = arrays()
    assert_same_to_project_bound(BatchNorm(4)(torch._neg_view(x.detach())).detach(), by_torch(-x.detach()))
    (dx,) = torch.autograd.grad(BatchNorm(4)(x), x, torch._efficientzerotensor(x.shape))
    assert not dx.any()


def test_freed_memory_is_an_error() -> None:
    x, layer = arrays()[0].detach(), BatchNorm(4)
    x.untyped_storage().resize_(0)
    with pytest.raises(ArgumentError, match="`input` has no memory for its 800 numbers"):
        layer(x)


def test_a_skipped_batch_counts_under_any_default_device() -> None:
    layer, x = BatchNorm(4), torch.full((8, 4), torch.nan)
    torch.set_default_device("meta")
    try:
        with pytest.warns(RuntimeWarning, match="1 batch"):
            layer(x)
    finally:
        torch.set_default_device(None)
    assert int(layer.nonfinite_batches) == 1
    assert int(layer.num_batches_tracked) == 0


@pytest.mark.parametrize(("name", "value"), [("activation", ["relu"]), ("eps", -1.0), ("momentum", 99.0)])
@pytest.mark.parametrize("training", [True, False])
def test_options_set_wrong_later_are_named(name: str, value: Any, training: bool) -> None:
    layer, (x, _, _) = BatchNorm(4).train(training), arrays()
    setattr(layer, name, value)
    with torch.no_grad(), pytest.raises(ArgumentError, match=name):
        layer(x)


def test_counts_and_statistics_tell_autograd_that_they_have_moved() -> None:
    layer, (x, _, _) = BatchNorm(4), arrays()
    before = [b._version for b in layer.buffers() if b is not layer.nonfinite_batches]
    layer(x)
    assert all(b._version > v for b, v in zip(list(layer.buffers())[:3], before, strict=True))
