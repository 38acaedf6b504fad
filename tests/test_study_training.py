"""Many replicas trained as one are what each would have been alone; and the same seed gives the same bits."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

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


@pytest.mark.parametrize(
    ("scores", "step"),
    [
        ([0.1, 0.5, 0.8, 0.9], 10),
        ([0.1, 0.8, 0.5, 0.8], 5),  # at the goal, below it, and at it in the end
        ([0.8, 0.9, 0.9, 0.9], 0),
        ([0.1, 0.9, 0.9, 0.79], math.inf),  # a touch that does not last
        ([0.1, 0.9, 0.9, math.nan], math.inf),
        ([0.1, math.nan, 0.5, 0.9], 20),
        ([0.1, 0.2, 0.3, 0.4], math.inf),
        ([math.nan] * 4, math.inf),
    ],
)
def test_a_run_arrives_where_it_is_first_at_the_goal_if_it_ends_there(scores: list[float], step: float) -> None:
    outcome = Outcome([0, 5, 10, 20], [0.0] * 4, scores)
    assert outcome.steps_to(0.8) == step
    assert Outcome([0, 5, 10, 20], scores, [0.0] * 4).steps_to(0.8, "validation") == step
    assert outcome.steps_to(0.8, "validation") == outcome.steps_to(math.inf) == math.inf
    assert Outcome().steps_to(0.0) == math.inf


def test_the_peak_is_the_test_score_at_the_best_validation_score() -> None:
    outcome = Outcome([0, 5, 10, 20], [0.1, 0.7, 0.6, math.nan], [0.2, 0.5, 0.9, 0.95])
    assert outcome.peak() == (0.7, 0.5)
    assert all(map(math.isnan, Outcome([0], [math.nan], [0.9]).peak()))
    assert outcome.until(10) == Outcome([0, 5, 10], [0.1, 0.7, 0.6], [0.2, 0.5, 0.9])


@pytest.mark.parametrize("steps", [1, 2, 120, 250, 400, 1000, 4000])
def test_runs_are_evaluated_at_every_step_at_first_and_in_the_end(steps: int) -> None:
    marks = training.evaluated_steps(steps)
    assert marks[: min(6, steps)] == list(range(min(6, steps)))
    assert marks[-1] == steps
    assert marks == sorted(set(marks))
    assert all(b <= max(a + 1, 1.25 * a) for a, b in pairwise(marks))


def test_scores_of_regression_and_of_diverged_runs() -> None:
    values = data.Dataset("d", "", np.zeros((4, 1), np.float32), np.zeros(4, np.float32), "regression")
    y = torch.tensor([[1.0, 2.0, 3.0]])
    perfect, mean, broken = y[..., None], torch.full((1, 3, 1), 2.0), torch.full((1, 3, 1), math.nan)
    assert training.scores(perfect, y, values) == [1.0]
    assert training.scores(mean, y, values) == [0.0]
    assert math.isnan(training.scores(broken, y, values)[0])


ROWS = 200


def table(task: str) -> data.Dataset:
    """Return a table whose rows are numbered by their only feature."""
    x, random = np.arange(ROWS, dtype=np.float32)[:, None], np.random.default_rng(0)
    if task == "classification":
        return data.Dataset("d", "", x, np.arange(ROWS) % 4, "classification", tuple("abcd"))
    y = random.normal(10.0, 5.0, (ROWS, 2)) if task == "values" else random.integers(0, 2, (ROWS, 3))
    return data.Dataset("d", "", x, y.astype(np.float64), "labels" if task == "labels" else "regression")


def targets(task: str, part: str, **choices: Any) -> Any:
    rows = Rows.of(table(task), [replace(SPEC, scaling="raw", seed=seed, **choices) for seed in (0, 1)])
    return rows.part(part)[1].numpy()


@pytest.mark.parametrize("task", ["classification", "labels", "values"])
def test_noise_replaces_a_share_of_the_targets_that_are_trained_on_and_no_others(task: str) -> None:
    plain, noisy = (targets(task, "train", label_noise=share) for share in (0.0, 0.5))
    changed = (plain != noisy).reshape(*plain.shape[:2], -1).any(2).mean(1)
    by_chance = {"classification": 0.75, "labels": 1 - 0.5**3, "values": 1.0}[task]  # a random one is another one
    assert changed == pytest.approx([0.5 * by_chance] * 2, **tolerance.OF_A_HUNDRED_DRAWS)
    assert not np.array_equal(noisy[0], noisy[1])
    for part in ("validation", "test"):
        assert np.array_equal(targets(task, part, label_noise=0.5), targets(task, part))
    again = targets(task, "train", label_noise=0.5, placement="none", rate=9.0)
    assert np.array_equal(noisy, again)  # both sides of a comparison are given the same
    if task == "labels":
        assert set(np.unique(noisy)) == {0.0, 1.0}


def test_all_targets_can_be_noise() -> None:
    shares = [
        np.bincount(classes, minlength=4) / 120 for classes in targets("classification", "train", label_noise=1.0)
    ]
    assert np.array(shares) == pytest.approx(0.25, **tolerance.OF_A_HUNDRED_DRAWS)


def test_values_are_standardised_by_the_training_rows() -> None:
    train = targets("values", "train")
    assert train.mean(1) == pytest.approx(0.0, abs=tolerance.PROJECT_BOUND)
    assert train.std(1) == pytest.approx(1.0, abs=tolerance.PROJECT_BOUND)
    rows = Rows.of(table("values"), [SPEC])
    part = rows.splits[0]
    learned = rows.data.y[part.train]
    expected = (rows.data.y[part.test] - learned.mean(0)) / learned.std(0)
    assert rows.part("test")[1][0].numpy() == pytest.approx(expected, abs=tolerance.PROJECT_BOUND)


def test_fewer_rows_are_the_first_of_the_training_part() -> None:
    every, few = (Rows.of(table("classification"), [replace(SPEC, rows=rows)]) for rows in (None, 40))
    assert np.array_equal(few.splits[0].train, every.splits[0].train[:40])
    assert np.array_equal(few.splits[0].test, every.splits[0].test)
    assert next(few.batches())[0].shape == (1, 30, 1)


def test_scaling_is_learned_from_training_rows_only(problem: Problem) -> None:
    digits = problem.datasets["main"]
    changed = replace(digits, x=digits.x.copy())
    rows = Rows.of(digits, [SPEC])
    changed.x[rows.splits[0].test] += 1000.0
    again = Rows.of(changed, [SPEC])
    assert np.array_equal(rows.factor, again.factor)
    assert np.array_equal(rows.shift, again.shift)


def test_an_epoch_visits_no_row_twice(problem: Problem) -> None:
    digits = problem.datasets["main"]
    numbered = replace(digits, x=np.arange(len(digits.x), dtype=np.float32)[:, None])
    batches = Rows.of(numbered, [replace(SPEC, scaling="raw")]).batches()
    count = len(data.split(numbered, 0).train) // SPEC.batch_size
    seen = np.concatenate([next(batches)[0].numpy().ravel() for _ in range(count)])
    assert len(set(seen)) == len(seen) == count * SPEC.batch_size


def test_other_widths_and_norms_are_built(problem: Problem) -> None:
    rows = Rows.of(problem.datasets["main"], [replace(SPEC, hidden=(20, 7), norm="layer")])
    network = training.build(problem, rows)
    widths = [m.weight.shape[1:] for m in network.modules() if isinstance(m, networks.ReplicaLinear)]
    assert widths == [(64, 20), (20, 7), (7, 10)]
    assert sum(isinstance(m, networks.ReplicaGroupNorm) for m in network.modules()) == 2


@pytest.mark.parametrize(("placement", "normalising"), [("none", 0), ("before", 3), ("after", 3), ("first", 1)])
def test_batches_are_normalised_where_they_are_to_be(problem: Problem, placement: Any, normalising: int) -> None:
    rows = Rows.of(problem.datasets["main"], [replace(SPEC, placement=placement)])
    network = training.build(problem, rows)
    training.train_mode(network, placement)
    layers = [m for m in network.modules() if isinstance(m, BatchNorm)]
    assert sum(layer.training for layer in layers) == len(layers) == normalising
    x, _ = next(rows.batches())
    alone, together = network(x[:, :15])[:, 0], network(x)[:, 0]
    apart = (alone - together).abs().max() / together.abs().max()
    assert (apart <= tolerance.PROJECT_BOUND) == (normalising == 0)


def test_the_layers_of_a_model_of_ones_own_are_switched_off() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout())
    for placement, normalises in (("none", False), ("before", True)):
        training.train_mode(network, placement)
        assert [module.training for module in network] == [True, normalises, True]


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
