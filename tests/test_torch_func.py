"""torch.func in training mode, with running statistics that are moved: where torch's own layer refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

from batchnorm.torch import BatchNorm, Renorm
from namespaces import to_numpy
from tolerance import assert_close

OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"virtual_batch_size": 4},
    {"renorm": Renorm(rmax=1.5, dmax=0.5)},
    {"activation": "gelu"},
]
options = pytest.mark.parametrize("options", OPTIONS, ids=str)


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    for (name, mine), (_, other) in zip(a.named_buffers(), b.named_buffers(), strict=True):
        assert_close(to_numpy(mine), to_numpy(other), "float32", 4.0)
        assert mine.grad_fn is None, name


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), BatchNorm(4, **options), nn.Tanh(), nn.Linear(4, 2))


def test_torchs_own_layer_refuses() -> None:
    with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
        jacrev(nn.BatchNorm1d(3))(batch(8, 3))


@options
def test_jacrev_of_the_layer_moves_its_statistics_once(options: dict[str, Any]) -> None:
    layer, twin = (BatchNorm(3, **options) for _ in range(2))
    x = batch(8, 3).requires_grad_()
    jacobian = jacrev(layer)(x.detach())
    y = twin(x)
    rows = torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0] for v in y.ravel()])
    assert_close(to_numpy(jacobian).reshape(rows.shape), to_numpy(rows), "float32", 4.0)
    assert_same_state(layer, twin)
    assert layer.num_batches_tracked == 1


@options
def test_grad_over_parameters_ahead_of_the_layer_moves_its_statistics_once(options: dict[str, Any]) -> None:
    model, twin = network(**options), network(**options)
    x = batch(8, 3)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(model, parameters, (x,)).square().sum()

    gradients = grad(loss)({name: p.detach() for name, p in model.named_parameters()})
    twin(x).square().sum().backward()
    for name, parameter in twin.named_parameters():
        assert_close(to_numpy(gradients[name]), to_numpy(parameter.grad), "float32", 64.0)
    assert_same_state(model, twin)


@options
def test_many_models_take_their_gradients_together(options: dict[str, Any]) -> None:
    models = [network(**options) for _ in range(3)]
    xs = batch(3, 8, 3)
    parameters, buffers = stack_module_state(models)

    def loss(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(models[0], (p, b), (x,)).square().sum()

    gradients = vmap(grad(loss))(parameters, buffers, xs)
    for i, model in enumerate(models):
        model(xs[i]).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert_close(to_numpy(gradients[name][i]), to_numpy(parameter.grad), "float32", 64.0)
        for name, buffer in model.named_buffers():
            assert_close(to_numpy(buffers[name][i]), to_numpy(buffer), "float32", 4.0)


def test_replicas_stacked_from_checkpoints_train_without_the_count_that_these_do_not_hold() -> None:
    layers = [BatchNorm(3) for _ in range(3)]
    states = {key: torch.stack([layer.state_dict()[key] for layer in layers]) for key in layers[0].state_dict()}
    xs = batch(3, 8, 3)
    vmap(lambda state, x: functional_call(layers[0], state, (x,)))(states, xs)
    assert states["num_batches_tracked"].tolist() == [1, 1, 1]
    layers[2](xs[2])
    assert_close(to_numpy(states["running_var"][2]), to_numpy(layers[2].running_var), "float32")


def test_a_transform_leaves_nothing_behind_for_checkpointing() -> None:
    layer, x = BatchNorm(3, renorm=Renorm(rmax=1.5)), batch(4, 8, 3)
    parameters, buffers = stack_module_state([layer] * 4)
    vmap(lambda p, b, x: functional_call(layer, (p, b), (x,)))(parameters, buffers, x)
    leaf = x[0].requires_grad_()
    torch.utils.checkpoint.checkpoint(layer, leaf, use_reentrant=False).sum().backward()
    assert leaf.grad is not None
