"""Many replicas trained as one are what each would have been alone; and the same seed gives the same bits."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import tolerance
from batchnorm.study import data, networks, shipped, training
from batchnorm.study.lab import MOST_TOGETHER, chunks
from batchnorm.study.optimizers import OPTIMIZERS, ReplicaOptimizer
from batchnorm.study.training import Outcome, Problem, Rows, Spec
from batchnorm.torch import BatchNorm

SPEC = Spec("main", "before", "sigmoid", "minmax", "sgd", 30, 12, "", None, 0.5, 0)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem({"main": shipped.digits()})


def test_every_optimizer_is_compared() -> None:
    assert set(OPTIMIZERS) == set(TORCH)


TORCH = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}


@pytest.mark.parametrize("name", TORCH)
def test_each_replica_moves_as_torch_would_move_it_alone(name: str) -> None:
    rates = [0.1, 0.003]
    torch.manual_seed(0)
    together = networks.ReplicaLinear(torch.randn(2, 4, 3))
    start = [p.detach().clone() for p in together.parameters()]
    many = ReplicaOptimizer(name, together, rates)
    batches = [torch.randn(2, 8, 4) for _ in range(5)]
    for x in batches:
        together(x).sigmoid().square().mean((1, 2)).sum().backward()
        many.step()
    for i, rate in enumerate(rates):
        alone = networks.ReplicaLinear(torch.zeros(1, 4, 3))
        with torch.no_grad():
            for parameter, first in zip(alone.parameters(), start, strict=True):
                parameter.copy_(first[i : i + 1])
        bound = len(batches) * tolerance.ROUNDINGS
        one = TORCH[name](alone.parameters(), lr=rate)
        for x in batches:
            one.zero_grad()
            alone(x[i : i + 1]).sigmoid().square().mean((1, 2)).sum().backward()
            one.step()
        for a, b in zip(alone.parameters(), together.parameters(), strict=True):
            tolerance.assert_close(b[i : i + 1].detach(), a.detach(), "float32", b.abs().max().item(), roundings=bound)


@pytest.mark.parametrize("placement", ["none", "before", "after", "first"])
def test_replicas_do_not_see_one_another(problem: Problem, placement: networks.Placement) -> None:
    specs = [
        replace(SPEC, placement=placement, seed=seed, rate=rate) for seed, rate in ((0, 0.5), (1, 1.0), (0, math.inf))
    ]
    together = training.train(specs, problem)
    for spec, outcome in zip(specs[:2], together[:2], strict=True):
        (alone,) = training.train([spec], problem)
        flipped = np.abs(np.subtract(alone.test, outcome.test)) * 360  # rows of the test part
        assert flipped.max() < tolerance.FLIPPED_ROWS
    assert math.isnan(together[2].test[-1])


def test_equal_seeds_draw_equal_batches_wherever_the_layer_is(problem: Problem) -> None:
    first = [next(Rows.of(problem.datasets["main"], [replace(SPEC, placement=p)]).batches()) for p in ("none", "after")]
    assert torch.equal(first[0][0], first[1][0])


def test_the_same_spec_gives_the_same_bits(problem: Problem) -> None:
    one, two = (training.train([SPEC, replace(SPEC, seed=1)], problem) for _ in range(2))
    assert one == two


def test_an_epoch_uses_every_row_once(problem: Problem) -> None:
    rows = Rows.of(problem.datasets["main"], [SPEC])
    batches = rows.batches()
    count = len(rows.splits[0].train) // SPEC.batch_size
    seen = torch.cat([next(batches)[0].flatten(2) for _ in range(count)], dim=1)[0]
    train, _ = rows.part("train")
    known = {tuple(row.tolist()) for row in train.flatten(2)[0]}
    assert {tuple(row.tolist()) for row in seen} <= known
    assert len(seen) == count * SPEC.batch_size


def test_steps_to_a_goal() -> None:
    outcome = Outcome([0, 5, 10], [0.1, 0.5, 0.9], [0.1, math.nan, 0.8])
    assert outcome.steps_to(0.5, "validation") == 5
    assert outcome.steps_to(0.8) == 10
    assert outcome.steps_to(0.95) == math.inf


def test_scores_of_regression_and_of_diverged_runs() -> None:
    made = data.Dataset("d", "", np.zeros((4, 1), np.float32), np.zeros(4, np.float32), "regression")
    y = torch.tensor([[1.0, 2.0, 3.0]])
    perfect, mean, broken = y[..., None], torch.full((1, 3, 1), 2.0), torch.full((1, 3, 1), math.nan)
    assert training.scores(perfect, y, made) == [1.0]
    assert training.scores(mean, y, made) == [0.0]
    assert math.isnan(training.scores(broken, y, made)[0])


def test_virtual_batches_reach_the_layers_and_keep_runs_apart(problem: Problem) -> None:
    split_up = replace(SPEC, virtual_batch_size=4)
    network = training.build(problem, Rows.of(problem.datasets["main"], [split_up]))
    assert [m.virtual_batch_size for m in network.modules() if isinstance(m, BatchNorm)] == [4] * networks.DEPTH
    assert list(chunks([SPEC, split_up])) == [[SPEC], [split_up]]


def test_chunks_hold_one_group_each_and_every_run_once() -> None:
    specs = [replace(SPEC, seed=s, placement=p) for s in range(MOST_TOGETHER + 3) for p in ("none", "before")]
    cut = list(chunks([*specs, *specs]))
    assert sorted(s for chunk in cut for s in chunk) == sorted(specs)
    for chunk in cut:
        assert len({s.group for s in chunk}) == 1
        assert len(chunk) <= MOST_TOGETHER
