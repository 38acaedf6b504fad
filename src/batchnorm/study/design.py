"""The design of a study: which runs are compared, on which grids; and how claims read their outcomes."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from batchnorm.study.curves import score
from batchnorm.study.data import Dataset
from batchnorm.study.lab import Lab
from batchnorm.study.networks import Placement
from batchnorm.study.training import Outcome, Spec

HALF_DECADE = 0.5
# Where the middle of the useful learning rates lies, in decades, relative to plain SGD.
SHIFT = {"sgd": 0.0, "momentum": -1.0, "rmsprop": -2.5, "adam": -2.5}


@dataclass(frozen=True)
class Settings:
    """What the user chose, and the grids that follow from it.

    Attributes:
        seeds: Paired repetitions: each draws its own split, weights and order of the data.
        optimizer: "sgd", "momentum", "rmsprop" or "adam".
        batch_size: Rows a step.
        quick: A third of the work: three seeds, coarser grids, fewer steps.
        model: `module:factory` of the user's own model, or None for the base network.
    """

    seeds: int = 5
    optimizer: str = "sgd"
    batch_size: int = 60
    quick: bool = False
    model: str | None = None

    @property
    def steps(self) -> int:
        """Steps of a full run."""
        return 250 if self.quick else 1000

    @property
    def short_steps(self) -> int:
        """Steps where both sides have batch normalization, or learn as fast without."""
        return 120 if self.quick else 400

    @property
    def stride(self) -> float:
        """Distance of neighbouring learning rates and initial stds, in decades."""
        return 2 * HALF_DECADE if self.quick else HALF_DECADE

    def grid(self, low: float, high: float, stride: float | None = None) -> list[float]:
        """Return numbers from 10^low to 10^high, a stride of so many decades apart, rounded to two digits."""
        step = stride or self.stride
        count = math.floor((high - low) / step + 1e-9) + 1
        return [float(f"{10 ** (low + i * step):.2g}") for i in range(count)]

    def rates(self, activation: str) -> list[float]:
        """Return the learning rates that every side of a comparison is tried at."""
        shift = SHIFT[self.optimizer]
        low, high = {"sigmoid": (-2.0, 2.0), "relu": (-2.5, 0.5)}.get(activation, (-3.0, 1.0))
        return self.grid(low + shift, high + shift)


@dataclass(frozen=True)
class Study:
    """One study: its settings, its data, and the lab that trains its runs. What a claim is given."""

    settings: Settings
    lab: Lab

    @property
    def datasets(self) -> dict[str, Dataset]:
        """The data by key; "main" is what the study is about."""
        return self.lab.problem.datasets

    @property
    def data(self) -> Dataset:
        """What the study is about."""
        return self.datasets["main"]

    @property
    def activation(self) -> str:
        """The base network's activation; "own" where the model is the user's."""
        return "own" if self.settings.model else "sigmoid"

    @property
    def shift(self) -> float:
        """Where this optimizer's useful learning rates lie, in decades, relative to plain SGD."""
        return SHIFT[self.settings.optimizer]

    @property
    def moderate_rate(self) -> float:
        """A learning rate at which runs that are only watched go well, without a sweep."""
        base = -0.5 if self.activation == "sigmoid" and self.data.task == "classification" else -1.5
        return float(f"{10 ** (base + self.shift):.2g}")

    @property
    def own_normalizes(self) -> bool:
        """Whether the user's model brings batch normalization of its own, which stays where it is."""
        return self.lab.problem.own_normalizes

    def goals(self, data: str = "main", level: str = "hard", part: str = "test") -> tuple[float, ...]:
        """Return the scores that count as arrived, one a seed."""
        goals = self.datasets[data].goals
        if goals is None:
            raise ValueError(f"the goals of {data!r} have not been set")
        return goals[level][part]

    def goal(self, data: str = "main", level: str = "hard") -> float:
        """Return the goal in words and pictures: the median over seeds, on test data."""
        return statistics.median(self.goals(data, level))

    def steps(
        self, outcomes: Sequence[Outcome], data: str = "main", level: str = "hard", part: str = "test"
    ) -> list[float]:
        """Return the steps to the goal of runs that are one a seed; infinity for those that never arrive."""
        goals = self.goals(data, level, part)[: len(outcomes)]
        return [outcome.steps_to(goal, part) for outcome, goal in zip(outcomes, goals, strict=True)]

    def spec(self, **choices: Any) -> Spec:
        """Return the run that the settings describe, but for `choices`."""
        base = Spec(
            data="main", placement="before", activation=self.activation, scaling="", optimizer=self.settings.optimizer,
            batch_size=self.settings.batch_size, steps=self.settings.steps, probe="", std=None, rate=0.0, seed=0,
        )  # fmt: skip
        chosen = replace(base, **choices)
        return chosen if chosen.scaling else replace(chosen, scaling=self.datasets[chosen.data].scaling)

    def seeds(self, spec: Spec) -> list[Spec]:
        """Return a run once for every seed."""
        return [replace(spec, seed=seed) for seed in range(self.settings.seeds)]

    def sweep(self, placement: Placement, rates: Iterable[float] | None = None, **choices: Any) -> list[Spec]:
        """Return a run for every learning rate and seed."""
        spec = self.spec(placement=placement, **choices)
        grid = self.settings.rates(spec.activation) if rates is None else rates
        return [s for rate in grid for s in self.seeds(replace(spec, rate=rate))]

    def by_rate(self, specs: Sequence[Spec]) -> dict[float, list[Outcome]]:
        """Return the outcomes of a sweep, one a seed, by learning rate."""
        rates = dict.fromkeys(s.rate for s in specs)
        return {rate: [self.lab[s] for s in specs if s.rate == rate] for rate in rates}

    def best(self, specs: Sequence[Spec], level: str = "hard", until: int | None = None) -> tuple[float, list[Outcome]]:
        """Return the best learning rate of a sweep and its outcomes, one a seed.

        Best is: the fewest steps to the goal (median over seeds), then the highest final score, both on the validation
        part. The test part, which the claims report, takes no part in the choice. With `until`, the runs are taken as
        they stood at that step: every side has the same budget.
        """
        budget = specs[0].steps if until is None else until
        cut = {rate: [o.until(budget) for o in outcomes] for rate, outcomes in self.by_rate(specs).items()}

        def rank(outcomes: Sequence[Outcome]) -> tuple[float, float]:
            steps = statistics.median(self.steps(outcomes, specs[0].data, level, "validation"))
            return steps, -statistics.median(score(o.validation[-1]) for o in outcomes)

        return min(cut.items(), key=lambda item: rank(item[1]))
