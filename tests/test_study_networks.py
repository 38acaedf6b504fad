"""The study's networks: each replica is what torch's own layers would be alone, and what is compared starts equal."""

import itertools
import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

import tolerance
from batchnorm.study import networks
from batchnorm.study.networks import ReplicaDynamicTanh, ReplicaGroupNorm, ReplicaLinear, base_network
from batchnorm.torch import BatchNorm

NORMS = get_args(networks.Norm)


def linears(network: nn.Module) -> list[ReplicaLinear]:
    return [m for m in network.modules() if isinstance(m, ReplicaLinear)]


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move scale and shift away from one and zero, so that a fault in their use shows."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.3)
    return module


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 7, 20, generator=torch.Generator().manual_seed(1)) * 3.0 + 1.0


@pytest.mark.parametrize("placement", ["before", "after", "first"])
@pytest.mark.parametrize("norm", NORMS)
def test_equal_seeds_draw_equal_weights_whatever_normalises(placement: networks.Placement, norm: networks.Norm) -> None:
    made = base_network(8, 3, placement=placement, activation="relu", seeds=[3, 4], stds=[None, 1.0], norm=norm)
    batch = base_network(8, 3, placement="none", activation="relu", seeds=[3, 4], stds=[None, 1.0])
    for ours, theirs in zip(linears(made), linears(batch), strict=True):
        assert torch.equal(ours.weight, theirs.weight)
    units = networks.DEPTH * networks.WIDTH
    more = {"before": units, "after": 2 * units, "first": 0}[placement]  # before: the shift is the bias
    alphas = networks.DEPTH if norm == "tanh" and placement != "first" else 0
    assert parameters(made) == parameters(batch) + 2 * (more + alphas)


@pytest.mark.parametrize("norm", NORMS)
def test_replicas_do_not_see_one_another(norm: networks.Norm) -> None:
    def made(seeds: list[int]) -> nn.Module:
        return base_network(
            8, 3, placement="before", activation="tanh", seeds=seeds, stds=[None] * len(seeds), norm=norm
        )

    x = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    x[1, 3, 2] = math.nan
    together, alone = made([5, 6])(x), made([5])(x[:1])
    tolerance.assert_close(together[:1].detach(), alone.detach(), "float32", alone.abs().max().item())
    assert not together[1].isfinite().all()


@pytest.mark.parametrize("hidden", [(50,), (30, 20, 10, 5)])
def test_layers_are_as_wide_and_as_many_as_asked(hidden: tuple[int, ...]) -> None:
    made = base_network(8, 3, placement="before", activation="elu", seeds=[0], stds=[None], hidden=hidden)
    assert [tuple(m.weight.shape[1:]) for m in linears(made)] == list(itertools.pairwise((8, *hidden, 3)))
    assert made(torch.randn(1, 6, 8)).shape == (1, 6, 3)


@pytest.mark.parametrize(
    ("activation", "module", "std"),
    [
        ("relu", nn.ReLU, math.sqrt(2 / 400)),
        ("leaky-relu", nn.LeakyReLU, math.sqrt(2 / 400)),
        ("gelu", nn.GELU, math.sqrt(2 / 400)),
        ("silu", nn.SiLU, math.sqrt(2 / 400)),
        ("elu", nn.ELU, math.sqrt(2 / 400)),
        ("tanh", nn.Tanh, math.sqrt(2 / 600)),
        ("sigmoid", nn.Sigmoid, 0.1),
    ],
)
def test_each_activation_starts_as_is_usual(activation: str, module: type[nn.Module], std: float) -> None:
    made = base_network(400, 10, placement="before", activation=activation, seeds=[0], stds=[None], hidden=(200,))
    assert sum(type(m) is module for m in made) == 1
    assert linears(made)[0].weight.std().item() == pytest.approx(std, **tolerance.OF_MANY_DRAWS)


def test_every_activation_is_tried_above() -> None:
    (cases,) = (m for m in test_each_activation_starts_as_is_usual.pytestmark if m.name == "parametrize")
    assert {case[0] for case in cases.args[1]} == set(networks.ACTIVATIONS)


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_place_for_it_nothing_normalises(norm: networks.Norm) -> None:
    made = base_network(4, 2, placement="none", activation="relu", seeds=[0], stds=[None], norm=norm)
    assert [type(m) for m in made] == [ReplicaLinear, nn.ReLU] * networks.DEPTH + [ReplicaLinear]
    assert all(m.bias is not None for m in linears(made))


def test_initial_std_is_what_was_asked() -> None:
    net = base_network(64, 10, placement="before", activation="relu", seeds=[0, 1], stds=[0.01, 3.0])
    for i, std in enumerate((0.01, 3.0)):
        drawn = torch.cat([m.weight[i].flatten() for m in linears(net)])
        assert drawn.std().item() == pytest.approx(std, **tolerance.OF_MANY_DRAWS)


@pytest.mark.parametrize("groups", [1, 4])
def test_groups_of_units_are_normalised_as_torch_does_it(x: Tensor, groups: int) -> None:
    ours = perturbed(ReplicaGroupNorm(2, 20, groups))
    y = ours(x).detach()
    for i in range(2):
        theirs = nn.LayerNorm(20) if groups == 1 else nn.GroupNorm(groups, 20)
        with torch.no_grad():
            for parameter, mine in zip(theirs.parameters(), ours.parameters(), strict=True):
                parameter.copy_(mine[i, 0])
        tolerance.assert_close(y[i], theirs(x[i]).detach(), "float32", y.abs().max().item())


def test_dynamic_tanh_is_its_formula(x: Tensor) -> None:
    layer = ReplicaDynamicTanh(2, 20)
    assert [p.unique().tolist() for p in layer.parameters()] == [[0.5], [1.0], [0.0]]
    perturbed(layer)
    expected = layer.weight.double() * torch.tanh(layer.alpha.double() * x.double()) + layer.bias.double()
    tolerance.assert_close(layer(x).detach(), expected.detach(), "float32", 4.0)


@pytest.mark.parametrize(("norm", "groups"), [("layer", 1), ("group", 10)])
def test_the_network_holds_the_layer_that_was_named(norm: networks.Norm, groups: int) -> None:
    made = base_network(8, 3, placement="before", activation="relu", seeds=[0], stds=[None], norm=norm)
    assert [m.groups for m in made if isinstance(m, ReplicaGroupNorm)] == [groups] * networks.DEPTH
    assert not any(isinstance(m, BatchNorm) for m in made)


@pytest.mark.parametrize("activation", networks.ACTIVATIONS)
def test_rescaled_units_start_with_zero_mean_and_unit_variance(activation: str) -> None:
    made = base_network(
        12, 3, placement="none", activation=activation, seeds=[0, 1], stds=[None, 3.0], norm="init", hidden=(30, 20)
    )
    x = torch.randn(2, 50, 12, generator=torch.Generator().manual_seed(0)) * 5.0 + 2.0
    last = linears(made)[-1].weight.detach().clone()
    networks.rescale_to_data(made, x)
    assert torch.equal(linears(made)[-1].weight, last)
    seen: list[Tensor] = []
    for layer in linears(made)[:-1]:
        layer.register_forward_hook(lambda _m, _x, y: seen.append(y.detach()))
    made(x)
    assert len(seen) == 2
    for y in seen:
        tolerance.assert_same_to_project_bound(y.double().mean(1), torch.zeros(2, y.shape[2]))
        tolerance.assert_same_to_project_bound(y.double().var(1, correction=0), torch.ones(2, y.shape[2]))


def test_units_that_do_not_vary_keep_their_weights() -> None:
    made = base_network(4, 2, placement="none", activation="relu", seeds=[0, 1], stds=[None, None], hidden=(5,))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    networks.rescale_to_data(made, torch.stack([torch.ones(6, 4), torch.full((6, 4), math.inf)]))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
