"""The design of a study: which runs are compared, on which grids; when a run has arrived; how claims read outcomes."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

from batchnorm.study import intervals
from batchnorm.study.data import Dataset
from batchnorm.study.lab import Lab
from batchnorm.study.networks import HIDDEN, Placement
from batchnorm.study.scores import METRICS, Metric, guessing
from batchnorm.study.training import Outcome, Spec
from batchnorm.study.tuning import LEAST_WAY, By, Sweep, Tuning, tuned

HALF_DECADE = 0.5
# Where the middle of the useful learning rates lies, in decades, relative to plain SGD.
SHIFT = {"sgd": 0.0, "momentum": -1.0, "rmsprop": -2.5, "adam": -2.5}
SHARES = {"near": 0.8, "goal": 0.9}  # of the way from guessing to the best score that a run reaches
SIDES: tuple[Placement, ...] = ("none", "before")
PAPER = "sigmoid"


@dataclass(frozen=True)
class Settings:
    """What the user chose, and the grids that follow from it.

    Attributes:
        seeds: Paired repetitions at the most: each draws its own split, weights and order of the data. Claims that six
            leave undecided take up to so many.
        optimizer: "sgd", "momentum", "rmsprop" or "adam".
        batch_size: Rows a step.
        quick: Shorter grids, fewer steps, which are not extended, and no seeds beyond those of the first look: a look
            in a fraction of the time.
        model: `module:factory` of the user's own model, or None for the base networks.
        activation: Of the main network; the paper's, with sigmoid units, stands beside it.
        hidden: Widths of the hidden layers.
        seed: The first seed; the others follow it.
        metric: Name of the score; None: what suits the data.
        loss: `module:function` (output, target) → mean loss, or a factory of one; None: the one that suits the data.
    """

    seeds: int = 12
    optimizer: str = "sgd"
    batch_size: int = 60
    quick: bool = False
    model: str | None = None
    activation: str = "relu"
    hidden: tuple[int, ...] = HIDDEN
    seed: int = 0
    metric: str | None = None
    loss: str | None = None

    @property
    def steps(self) -> int:
        """Steps of a run of the paper's network, which learns slowly without batch normalization."""
        return 200 if self.quick else 500

    @property
    def short_steps(self) -> int:
        """Steps of a run of any other network."""
        return 120 if self.quick else 400

    @property
    def stride(self) -> float:
        """Distance of neighbouring learning rates and initial stds, in decades."""
        return HALF_DECADE

    @property
    def extensions(self) -> int:
        """By how many points a grid is continued on either side, at the most."""
        return 2 if self.quick else 3

    @property
    def longer(self) -> int:
        """How many times the steps runs take whose curves are still rising at the end."""
        return 1 if self.quick else 4

    @property
    def schedule(self) -> tuple[int, ...]:
        """The numbers of seeds after which a claim may be decided."""
        looks = intervals.looks(self.seeds)
        return looks[:1] if self.quick else looks

    def grid(self, low: float, high: float, stride: float | None = None) -> list[float]:
        """Return numbers from 10^low to 10^high, a stride of so many decades apart, rounded to two digits."""
        step = stride or self.stride
        count = math.floor((high - low) / step + 1e-9) + 1
        return [float(f"{10 ** (low + i * step):.2g}") for i in range(count)]

    def rates(self, network: str) -> list[float]:
        """Return the learning rates that every side of a comparison is tried at; grids grow where the best is last."""
        shift = SHIFT[self.optimizer]
        low, high = {"sigmoid": (-1.0, 1.0), "own": (-3.0, 0.0)}.get(network, (-2.0, 0.0))
        if self.quick:
            low, high = {"own": (-2.0, -0.5)}.get(network, (low + HALF_DECADE, high))
        return self.grid(low + shift, high + shift)


class Range(NamedTuple):
    """From what guessing scores to the best a run reaches, for one seed: on validation and on test rows."""

    guess: float
    validation: float
    test: float


@dataclass(frozen=True)
class Study:
    """One study: its settings, its data, and the lab that trains its runs. What a claim is given.

    Attributes:
        settings: What the user chose.
        lab: Where runs are trained and their outcomes are.
        count: How many seeds are looked at.
        known: What has been read from outcomes and will not change.
    """

    settings: Settings
    lab: Lab
    count: int = 0
    known: dict[Any, Any] = field(default_factory=dict[Any, Any], compare=False, repr=False)

    def __post_init__(self) -> None:
        """Start with as many seeds as the first look takes."""
        if not self.count:
            object.__setattr__(self, "count", self.settings.schedule[0])

    def at(self, count: int) -> "Study":
        """Return the study looked at with so many seeds."""
        return replace(self, count=count)

    @property
    def first(self) -> int:
        """How many seeds the first look takes: those on which learning rates are chosen."""
        return self.settings.schedule[0]

    @property
    def datasets(self) -> dict[str, Dataset]:
        """The data by key; "main" is what the study is about."""
        return self.lab.problem.datasets

    @property
    def data(self) -> Dataset:
        """What the study is about."""
        return self.datasets["main"]

    @property
    def metric(self) -> Metric:
        """The score of the study's data."""
        return METRICS[self.data.metric]

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks by their activation, the main one first; "own" where the model is the user's."""
        return ("own",) if self.settings.model else tuple(dict.fromkeys((self.settings.activation, PAPER)))

    @property
    def main(self) -> str:
        """The network that the answer is about."""
        return self.networks[0]

    def named(self, network: str) -> str:
        """Return a network in words, as the part of a claim."""
        return "your model" if network == "own" else f"{network_word(network)} network"

    @property
    def shift(self) -> float:
        """Where this optimizer's useful learning rates lie, in decades, relative to plain SGD."""
        return SHIFT[self.settings.optimizer]

    def moderate_rate(self, network: str | None = None) -> float:
        """Return a learning rate at which runs that are only watched go well, without a sweep."""
        base = -0.5 if (network or self.main) == PAPER and self.data.task != "regression" else -1.5
        return float(f"{10 ** (base + self.shift):.2g}")

    @property
    def own_normalizes(self) -> bool:
        """Whether the user's model brings batch normalization of its own, which stays where it is."""
        return self.lab.problem.own_normalizes

    def steps_of(self, network: str) -> int:
        """Return the steps of a run, unless its curve is still rising then."""
        return self.settings.steps if network == PAPER else self.settings.short_steps

    def spec(self, network: str | None = None, **choices: Any) -> Spec:
        """Return the run that the settings describe for a network, but for `choices`."""
        name = network or self.main
        base = Spec(
            data="main", placement="before", activation=name, scaling="", optimizer=self.settings.optimizer,
            batch_size=self.settings.batch_size, steps=self.steps_of(name), probe="", std=None, rate=0.0, seed=0,
            hidden=self.settings.hidden,
        )  # fmt: skip
        chosen = replace(base, **choices)
        return chosen if chosen.scaling else replace(chosen, scaling=self.datasets[chosen.data].scaling)

    def seeds(self, spec: Spec, first: int = 0, last: int | None = None) -> list[Spec]:
        """Return a run once for every seed that is looked at, or for those from `first` to `last`."""
        count = self.count if last is None else last
        return [replace(spec, seed=self.settings.seed + i) for i in range(first, count)]

    def units(self, spec: Spec) -> list[list[Spec]]:
        """Return a run once for every seed that is looked at: the seeds that each look adds are trained together."""
        looks = (count for count in self.settings.schedule if count <= self.count)
        return [self.seeds(spec, first, last) for first, last in pairwise([0, *looks])]

    def outcomes(self, specs: Iterable[Spec]) -> list[Outcome]:
        """Return the outcomes of runs that have been trained."""
        return [self.lab[s] for s in specs]

    def trained(self, specs: Iterable[Spec]) -> bool:
        """Whether all of these runs have been trained."""
        return all(s in self.lab.outcomes for s in specs)

    def rates(self, network: str) -> list[float]:
        """Return the learning rates of a network's grid: squared errors want lower ones of a sigmoid network."""
        return self.settings.rates("relu" if self.data.task == "regression" and network == PAPER else network)

    def sweep(self, placement: Placement, network: str | None = None, **choices: Any) -> Sweep:
        """Return one side of a comparison: a run at every learning rate."""
        rates = tuple(choices.pop("rates", None) or self.rates(network or self.main))
        return Sweep(self.spec(network, placement=placement, **choices), rates)

    @property
    def core(self) -> tuple[Sweep, ...]:
        """Every network with and without batch normalization: what the goals follow, and most claims share."""
        return tuple(self.sweep(side, network) for network in self.networks for side in SIDES)

    def tune(
        self, placement: Placement, network: str | None = None, *, by: By = "steps", core: Sequence[Sweep] = (),
        **choices: Any,
    ) -> Tuning:  # fmt: skip
        """Return one side of a comparison at its best learning rate, as far as it has been trained.

        Args:
            placement: Where batch normalization is.
            network: Which network; the main one if None.
            by: Whether the best rate arrives first, or reaches the highest score.
            core: The sweeps that the goals follow, where it is not the study's core.
            choices: Of the runs; `rates` for another grid.
        """
        sweep, core = self.sweep(placement, network, **choices), tuple(core or self.core)
        key = ("tuning", self.count, sweep, by, core)
        if key in self.known:
            return self.known[key]
        tuning = tuned(self, sweep, by, core)
        if tuning.settled:
            self.known[key] = tuning
        return tuning

    def ranges(self, data: str = "main", core: Sequence[Sweep] = ()) -> list[Range]:
        """Return for each seed what the scores of its runs range over: from guessing to the best that is reached.

        The best run and step are those with the highest validation score among the core sweeps.
        """
        key = ("ranges", self.count, data, tuple(core or self.core))
        if key not in self.known:
            self.known[key] = [self._range(i, data, key[-1]) for i in range(self.count)]
        return self.known[key]

    def _range(self, i: int, data: str, core: Sequence[Sweep]) -> Range:
        peaks = [self.lab[s].peak() for sweep in core for s in sweep.core_runs(self, i, core)]
        best = max((p for p in peaks if math.isfinite(p[0])), default=(math.nan, math.nan))
        return Range(guessing(METRICS[self.datasets[data].metric], self.datasets[data]), *best)

    def goals(
        self, level: str = "goal", part: str = "test", data: str = "main", core: Sequence[Sweep] = ()
    ) -> list[float]:
        """Return the scores that count as arrived, one a seed; infinity where nothing was learned."""
        fixed = self.datasets[data].fixed_goals
        if fixed is not None:
            return [dict(zip(SHARES, fixed, strict=True))[level]] * self.count
        return [_goal(r.guess, getattr(r, part), SHARES[level]) for r in self.ranges(data, core)]

    def goal(self, level: str = "goal", data: str = "main", core: Sequence[Sweep] = ()) -> float:
        """Return the goal in words and pictures: the median over the seeds of the first look, on test rows."""
        return statistics.median(self.at(self.first).goals(level, "test", data, core))

    def reach(self) -> float:
        """Return the best test score that runs reach in words and pictures: the median over the first seeds."""
        return statistics.median(r.test for r in self.at(self.first).ranges())

    @property
    def guess(self) -> float:
        """What guessing scores."""
        return guessing(self.metric, self.data)

    def arrivals(
        self, outcomes: Sequence[Outcome], level: str = "goal", part: str = "test", data: str = "main",
        core: Sequence[Sweep] = (),
    ) -> list[float]:  # fmt: skip
        """Return the steps to the goal of runs that are one a seed; infinity for those that have not arrived."""
        goals = self.goals(level, part, data, core)[: len(outcomes)]
        return [outcome.steps_to(goal, part) for outcome, goal in zip(outcomes, goals, strict=True)]

    def shares(self, outcomes: Sequence[Outcome]) -> list[float]:
        """Return the mean share of the way from guessing to the best score, over steps on a logarithmic scale."""
        return [_mean_share(o, r) for o, r in zip(outcomes, self.ranges()[: len(outcomes)], strict=True)]


def network_word(activation: str) -> str:
    """Return an activation as it is written: "ReLU", "sigmoid", "GELU"."""
    return {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "elu": "ELU", "leaky-relu": "leaky ReLU"}.get(
        activation, activation
    )


def _goal(guess: float, reach: float, share: float) -> float:
    return guess + share * (reach - guess) if reach - guess >= LEAST_WAY else math.inf


def _mean_share(outcome: Outcome, reached: Range) -> float:
    """Return the area under a run's curve: each evaluation counts as much as its step is apart from the one before.

    A score below guessing, and one of a run that has diverged, counts as guessing.
    """
    way = reached.test - reached.guess
    if not way >= LEAST_WAY:
        return math.nan
    steps = [math.log(step) for step in outcome.steps if step]
    scores = [score for step, score in zip(outcome.steps, outcome.test, strict=True) if step]
    shares = [0.0 if math.isnan(s) else max(s - reached.guess, 0.0) / way for s in scores]
    widths = [b - a for a, b in pairwise(steps)]
    return sum(w * (a + b) / 2 for w, (a, b) in zip(widths, pairwise(shares), strict=True)) / sum(widths)
