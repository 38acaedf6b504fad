"""What probes measure in networks, against independent formulas; and that looking into a run changes nothing in it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tolerance
from batchnorm.study import shipped, training
from batchnorm.study.claims import covariate_shift, exploding_gradients, landscape
from batchnorm.study.gradients import batch, between_steps, fixed_rows, flat, loss_and_gradients, norms, weights
from batchnorm.study.networks import ReplicaLinear, base_network
from batchnorm.study.own_model import SideBySide
from batchnorm.study.training import Problem, Rows, Spec
from batchnorm.torch import BatchNorm
from study_outcomes import table

PROBES = (covariate_shift.PROBE, exploding_gradients.PROBE, landscape.PROBE, landscape.PROBE_OF_SLOW_RUN)
SPEC = Spec("main", "before", "relu", "minmax", "sgd", 30, 12, "", None, 0.3, 0, hidden=(16, 16))
PROBLEM = Problem({"main": replace(shipped.digits(), metric="skill")})
CLASSES = SimpleNamespace(data=table(), specs=[replace(SPEC, rate=0.3), replace(SPEC, rate=0.7, seed=1)])
VALUES = SimpleNamespace(data=table(task="regression", classes=(), metric="r2"))


def rows_of(*specs: Spec) -> Rows:
    return Rows.of(PROBLEM.datasets["main"], specs)


class Alone(nn.Module):
    """One replica of a base network in torch's own layers, in float64; without normalization, the units have biases."""

    def __init__(self, together: nn.Module, replica: int, placement: str) -> None:
        super().__init__()
        self.normed = placement == "before"
        self.activation = next(type(m) for m in together.modules() if isinstance(m, nn.ReLU | nn.Sigmoid))()
        layers = [m for m in together.modules() if isinstance(m, ReplicaLinear)]
        self.linear = nn.ModuleList(nn.Linear(*m.weight.shape[1:], bias=m.bias is not None) for m in layers)
        self.norm = nn.ModuleList(nn.BatchNorm1d(m.weight.shape[2]) for m in layers[:-1])
        self.double()
        for mine, theirs in zip(self.linear, layers, strict=True):
            mine.weight.data.copy_(theirs.weight[replica].detach().T)
            if theirs.bias is not None:
                mine.bias.data.copy_(theirs.bias[replica, 0].detach())

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm in zip(self.linear, self.norm, strict=False):
            x = self.activation(norm(linear(x)) if self.normed else linear(x))
        return self.linear[-1](x)


def network_of(placement: Any, activation: str = "relu") -> tuple[nn.Module, Tensor, Tensor]:
    """Two replicas in float64 in training mode, and a batch for them."""
    network = base_network(
        5, 2, placement=placement, activation=activation, seeds=[0, 1], stds=[None, 0.4], hidden=(6, 7)
    )
    network.double()
    training.train_mode(network, placement)
    random = torch.Generator().manual_seed(3)
    x = torch.randn(2, 20, 5, generator=random, dtype=torch.float64)
    return network, x, (x[..., 0] + x[..., 1] > 0).long()


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("placement", ["none", "before"])
def test_a_run_that_is_looked_into_goes_on_as_if_it_were_not(probe: str, placement: Any) -> None:
    specs = [replace(SPEC, placement=placement, seed=seed) for seed in (0, 1)]
    watched = training.train([replace(s, probe=probe) for s in specs], PROBLEM)
    for outcome, alone in zip(watched, training.train(specs, PROBLEM), strict=True):
        assert outcome.probed
        assert (outcome.steps, outcome.validation, outcome.test) == (alone.steps, alone.validation, alone.test)


@pytest.mark.parametrize("look", [covariate_shift.probe, exploding_gradients.probe, landscape.probe])
@pytest.mark.parametrize("placement", ["none", "before"])
def test_a_look_leaves_no_trace(look: Any, placement: Any) -> None:
    specs = [replace(SPEC, placement=placement, seed=seed) for seed in (0, 1)]
    rows = rows_of(*specs)
    network = training.build(PROBLEM, rows)
    x, y = rows.part("train")
    training.losses(network(x), y, rows.data).sum().backward()
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = [p.grad for p in network.parameters()]
    copies = [g.clone() for g in gradients]
    random = torch.get_rng_state()
    seen = look(network, rows, 0)
    assert len(seen) == 2
    assert seen[0] != seen[1]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(
        p.grad is g and torch.equal(g, c) for p, g, c in zip(network.parameters(), gradients, copies, strict=True)
    )
    assert not any(m.training for m in network.modules())
    assert not any(m._forward_pre_hooks for m in network.modules())
    assert torch.equal(random, torch.get_rng_state())


def test_rows_of_a_look_are_training_rows_and_the_same_in_any_network() -> None:
    specs = [replace(SPEC, placement=p, rate=r, seed=s) for p, r, s in (("none", 0.1, 3), ("before", 1.0, 3))]
    one, other = (batch(rows_of(s), step=7) for s in specs)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    rows = rows_of(specs[0])
    train = {tuple(row.tolist()) for row in rows.part("train")[0].flatten(2)[0]}
    assert one[0].shape[1] == SPEC.batch_size
    assert all(tuple(row.tolist()) in train for row in one[0].flatten(2)[0])
    assert not torch.equal(one[0], batch(rows, step=8)[0])
    assert torch.equal(fixed_rows(rows, 5), rows.part("train")[0][:, :5])


@pytest.mark.parametrize("placement", ["none", "before"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_gradients_are_those_of_each_replica_alone(placement: Any, activation: str) -> None:
    network, x, y = network_of(placement, activation)
    loss, gradients = loss_and_gradients(network, (x, y), CLASSES, weights(network))
    for i in range(2):
        alone = Alone(network, i, placement)
        truth = nn.functional.cross_entropy(alone(x[i]), y[i])
        truth.backward()
        assert loss[i].item() == pytest.approx(truth.item(), **tolerance.EXACT_LINE)
        for gradient, linear in zip(gradients, alone.linear, strict=True):
            tolerance.assert_close(gradient[i].T, linear.weight.grad, "float64", roundings=tolerance.THROUGH_LAYERS)
            length = np.sqrt((linear.weight.grad.numpy() ** 2).sum())
            assert norms(gradient)[i].item() == pytest.approx(length, **tolerance.EXACT_LINE)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("placement", ["none", "before"])
def test_the_change_of_a_gradient_is_that_by_the_steps_of_the_layers_before(placement: Any) -> None:
    network, x, y = network_of(placement)
    measured = covariate_shift.gradient_changes(network, (x, y), CLASSES)
    network, _, _ = network_of(placement)
    for i, spec in enumerate(CLASSES.specs):
        relative: list[float] = []
        turns: list[float] = []
        for layer in (1, 2):
            alone = Alone(network, i, placement)
            nn.functional.cross_entropy(alone(x[i]), y[i]).backward()
            before = alone.linear[layer].weight.grad.clone()
            ahead = [*alone.linear[:layer].parameters(), *alone.norm[:layer].parameters()]
            torch.optim.SGD(ahead, lr=spec.rate).step()
            alone.zero_grad()
            nn.functional.cross_entropy(alone(x[i]), y[i]).backward()
            after = alone.linear[layer].weight.grad
            relative.append(((after - before).norm() / before.norm()).item())
            turns.append(1 - (after * before).sum().item() / (after.norm() * before.norm()).item())
        assert measured["relative"][i].item() == pytest.approx(np.mean(relative), **tolerance.TO_ONE_IN_A_MILLION)
        assert measured["turn"][i].item() == pytest.approx(np.mean(turns), **tolerance.TO_ONE_IN_A_MILLION)


@pytest.mark.parametrize("placement", ["none", "before"])
def test_percentiles_are_those_of_what_the_last_activation_is_given(placement: Any) -> None:
    network, x, _ = network_of(placement)
    got = covariate_shift.percentiles(network, x)
    for i in range(2):
        alone, inputs = Alone(network, i, placement), list[Tensor]()
        alone.activation.register_forward_pre_hook(lambda _, args, into=inputs: into.append(args[0].detach()))
        alone(x[i])
        expected = np.percentile(inputs[-1].numpy(), [15, 50, 85], axis=0)
        tolerance.assert_close(got[i], expected, "float64", np.abs(expected).max())


def test_of_many_units_some_are_watched() -> None:
    rows = rows_of(replace(SPEC, hidden=(50, 65)))
    assert covariate_shift.percentiles(training.build(PROBLEM, rows), fixed_rows(rows, 9)).shape == (1, 3, 20)


def test_drift_is_the_range_of_the_percentiles_by_their_largest_spread() -> None:
    still, moving, flat_unit = (-1.0, 0.0, 1.0), (0.0, 1.0, 5.0), (2.0, 2.0, 2.0)
    later = (3.0, 3.0, 4.0)  # of the moving one: ranges 3, 2 and 1, the spread is 5 and 1
    steps = [(still, moving, flat_unit), (still, later, flat_unit)]
    looks = [{"percentiles": np.transpose(units).tolist()} for units in steps]
    measured = covariate_shift.drift(looks)
    assert measured[:2] == [0.0, 2.0 / 5.0]
    assert math.isnan(measured[2])


def quadratic(curvatures: Sequence[float]) -> tuple[nn.Module, Tensor, Tensor]:
    """Linear least squares whose loss has the same curvature λ in every direction: XᵀX = N·λ/2, one λ a replica."""
    count = 4
    x = torch.stack([torch.eye(count, dtype=torch.float64) * math.sqrt(count * c / 2) for c in curvatures])
    network = nn.Sequential(ReplicaLinear(torch.ones(len(curvatures), count, 1, dtype=torch.float64), bias=False))
    return network, x, torch.arange(count, dtype=torch.float64).expand(len(curvatures), count)


def test_smoothness_of_a_quadratic_is_its_curvature() -> None:
    curvatures, rates = (0.5, 3.0), (0.1, 0.4)
    network, x, y = quadratic(curvatures)
    _, (gradient,) = loss_and_gradients(network, (x, y), VALUES, list(network.parameters()))
    squares = [g.item() ** 2 for g in norms(gradient)]
    seen = landscape.along(network, (x, y), VALUES, rates)
    for i, (curvature, rate, square) in enumerate(zip(curvatures, rates, squares, strict=True)):
        assert seen["beta"][i].item() == pytest.approx(curvature, **tolerance.TO_ONE_IN_A_MILLION)
        ends = [rate * length for length in landscape.LENGTHS]
        change = max(ends) * curvature * math.sqrt(square)
        assert seen["change"][i].item() == pytest.approx(change, **tolerance.TO_ONE_IN_A_MILLION)
        losses = [seen["loss"][i].item() - t * square + t**2 * curvature * square / 2 for t in ends]
        assert seen["highest"][i].item() == pytest.approx(max(losses), **tolerance.TO_ONE_IN_A_MILLION)
        assert seen["range"][i].item() == pytest.approx(max(losses) - min(losses), **tolerance.TO_ONE_IN_A_MILLION)


def test_the_lengths_are_half_to_four_times_the_rate() -> None:
    assert len(landscape.LENGTHS) == 8
    assert (landscape.LENGTHS[0], landscape.LENGTHS[-1]) == pytest.approx((0.5, 4.0), **tolerance.FEW_ROUNDINGS)


def test_a_run_at_a_tenth_of_the_rate_is_looked_at_as_far_ahead() -> None:
    fast, slow = replace(SPEC, rate=0.3), replace(SPEC, rate=0.03)
    network = training.build(PROBLEM, rows_of(fast))
    expected = landscape.probe(network, rows_of(fast), 0)
    (got,) = landscape.probe_of_slow_run(network, rows_of(slow), 0)
    assert got == {name: pytest.approx(value, **tolerance.STEPPED) for name, value in expected[0].items()}


def own_models() -> list[nn.Module]:
    torch.manual_seed(5)
    return [
        nn.Sequential(nn.Linear(5, 8), BatchNorm(8), nn.ReLU(), nn.Linear(8, 2)).double().requires_grad_(True)
        for _ in range(2)
    ]


def test_models_side_by_side_are_looked_at_one_by_one() -> None:
    models = own_models()
    for model in models:
        model[0].bias.requires_grad_(False)  # a frozen parameter
    _, x, y = network_of("before")
    together = landscape.along(SideBySide(models, 2), (x, y), CLASSES, [0.3, 0.7])
    for i, model in enumerate(own_models()):
        model[0].bias.requires_grad_(False)
        alone = landscape.along(SideBySide([model], 2), (x[i : i + 1], y[i : i + 1]), CLASSES, [(0.3, 0.7)[i]])
        for name, value in alone.items():
            assert together[name][i].item() == pytest.approx(value.item(), **tolerance.TO_ONE_IN_A_MILLION)


def test_all_numbers_of_a_replica_are_in_its_row() -> None:
    network = base_network(3, 2, placement="none", activation="relu", seeds=[0, 1], stds=[None, None], hidden=(4,))
    rows = flat(network, list(network.parameters()))
    assert rows.shape == (2, (3 * 4 + 4) + (4 * 2 + 2))
    assert torch.equal(rows[1, :12], network[0].weight[1].flatten())
    models = SideBySide([nn.Linear(3, 2), nn.Linear(3, 2)], 2)
    assert torch.equal(flat(models, list(models.parameters()))[1, :6], models.models[1].weight.flatten())


def dropped() -> nn.Module:
    return nn.Sequential(nn.Flatten(2), ReplicaLinear(torch.ones(1, 64, 10)), nn.Dropout(0.5))


def test_random_numbers_of_a_forward_are_the_same_at_every_place() -> None:
    network, rows = dropped(), rows_of(SPEC)
    with between_steps(network, rows):
        losses = [loss_and_gradients(network, batch(rows, 0), rows, weights(network))[0] for _ in range(2)]
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("placement", "activation", "factor"),
    [
        ("before", "relu", math.sqrt(math.pi / (math.pi - 1))),  # Yang et al. 2019: gradients explode
        ("none", "relu", 1.0),  # what He's initialization is for
        ("none", "sigmoid", None),  # gradients vanish
    ],
)
def test_gradients_of_deep_networks_are_those_of_mean_field_theory(
    placement: Any, activation: str, factor: float | None
) -> None:
    specs = [
        replace(
            SPEC, placement=placement, activation=activation, seed=s, hidden=exploding_gradients.DEEP, batch_size=60
        )
        for s in range(4)
    ]
    rows = rows_of(*specs)
    seen = exploding_gradients.probe(training.build(PROBLEM, rows), rows, 0)
    layers = len(exploding_gradients.DEEP) - 2
    measured = np.mean([exploding_gradients.decades(replica["norms"]) for replica in seen]) / layers
    assert 10**measured == pytest.approx(factor or sigmoid_factor(), **tolerance.MEAN_FIELD)


def sigmoid_factor() -> float:
    """√(n·std²·E[σ'(z)²]) for z ~ N(0, n·std²·E[σ(z)²]), with n·std² = 100·0.1² = 1."""
    points, masses = np.polynomial.hermite_e.hermegauss(60)
    masses = masses / masses.sum()
    variance = 0.25
    for _ in range(50):
        squashed = 1 / (1 + np.exp(-math.sqrt(variance) * points))
        variance = float((masses * squashed**2).sum())
    return math.sqrt(float((masses * (squashed * (1 - squashed)) ** 2).sum()))
