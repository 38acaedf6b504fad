"""One side of a comparison at its own best learning rate: which runs that takes, and when it is settled.

A side starts with every rate of its grid. Where the best rate is the last of the grid, the grid is continued beyond it;
where runs have not arrived and their scores still rise, they are trained for longer; and seeds that are added later are
trained at the best rate alone. Everything is chosen on validation rows.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from batchnorm.study.training import Outcome, Spec

if TYPE_CHECKING:
    from batchnorm.study.design import Study

By = Literal["steps", "score"]
LEAST_WAY = 0.02  # from guessing to the best score: on less there is nothing to arrive at
RISING = 0.02  # of the way from guessing to the best score, from half of the steps to all of them
NEVER = 10.0  # times its budget: how late a run that has not arrived counts in choosing a rate


@dataclass(frozen=True)
class Sweep:
    """One side of a comparison before its learning rate is chosen.

    Attributes:
        spec: Its runs, but for learning rate and seed.
        rates: The learning rates to try.
    """

    spec: Spec
    rates: tuple[float, ...]

    def unit(self, study: "Study") -> list[Spec]:
        """Return the runs that start it: every rate with the seeds of the first look."""
        return [s for rate in self.rates for s in self.at(study, rate)]

    def at(self, study: "Study", rate: float, steps: int | None = None) -> list[Spec]:
        """Return the runs at one rate with the seeds of the first look."""
        return study.seeds(replace(self.spec, rate=rate, steps=steps or self.spec.steps), 0, study.first)

    def core_runs(self, study: "Study", i: int, core: "Sequence[Sweep]") -> list[Spec]:
        """Return the runs of seed number i that goals follow: at every rate, or at the best one for added seeds."""
        seed = study.settings.seed + i
        if i < study.first:
            return [replace(self.spec, rate=rate, seed=seed) for rate in self.rates]
        best = _Search(study, self, "steps", core).explored().best
        if best is None:
            raise LookupError(f"the runs of {self.spec.activation}, {self.spec.placement}, have not been trained yet")
        return [replace(best, seed=seed)]


@dataclass(frozen=True)
class Tuning:
    """What is known of one side of a comparison.

    Attributes:
        units: The runs to train, as far as the outcomes so far tell: each list is one computation.
        settled: Whether they are all trained; the other attributes mean nothing before.
        rate: The best learning rate.
        outcomes: Its runs, one a seed.
        budget: Their steps.
        by_rate: The runs of the first look at every rate of the grid and beyond it, in rising order.
        edge: "low" or "high" where the best rate is the last one tried on that side; "" otherwise.
        rising: Whether the scores to compare still rise when the budget ends.
    """

    units: list[list[Spec]]
    settled: bool = False
    rate: float = math.nan
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    budget: int = 0
    by_rate: dict[float, list[Outcome]] = field(default_factory=dict[float, list[Outcome]])
    edge: str = ""
    rising: bool = False

    @property
    def at_edge(self) -> str:
        """Why the best rate may lie beyond those that were tried; "" if it does not."""
        where = {"low": "lowest", "high": "highest"}.get(self.edge)
        return f"the best learning rate, {self.rate:g}, is the {where} that was tried" if where else ""

    @property
    def obstacle(self) -> str:
        """Why no verdict can rest on this side; "" if one can."""
        return self.at_edge or (f"scores still rise after {self.budget:,} steps" if self.rising else "")


def obstacles(sides: Mapping[str, Tuning]) -> str:
    """Return why no verdict can rest on these sides, which are named as in "without it"; "" if one can."""
    found: dict[str, list[str]] = {}
    for name, tuning in sides.items():
        found.setdefault(tuning.obstacle, []).append(name)
    return " and ".join(f"{' and '.join(names)}, {text}" for text, names in found.items() if text)


def tuned(study: "Study", sweep: Sweep, by: By, core: Sequence[Sweep]) -> Tuning:
    """Return what is known of a sweep; call again when its units have been trained."""
    base = [s.unit(study) for s in core]
    own = sweep.unit(study)
    if not all(study.trained(unit) for unit in (*base, own)):
        return Tuning([*base, own])
    if study.count > study.first:
        base += [unit for s in core for unit in _Search(study, s, "steps", core).units()]
    search = _Search(study, sweep, by, core)
    units = [*base, *([] if sweep in core else [own]), *search.units()]
    explored = search.explored()
    if explored.best is None or not all(study.trained(unit) for unit in units):
        return Tuning(units)
    outcomes = study.outcomes(study.seeds(explored.best))
    by_rate = {rate: study.outcomes(sweep.at(study, rate)) for rate in explored.rates}
    return Tuning(
        units, True, explored.best.rate, outcomes, explored.best.steps, by_rate, explored.edge, explored.rising
    )


@dataclass(frozen=True)
class _Explored:
    """How far the search for a best learning rate has come.

    Attributes:
        units: The runs of the first look that it takes beyond the grid, until the first unit that is not trained.
        best: The run at the best rate, with the steps it was trained for in the end; None before it is known.
        rates: The rates of the grid and those that continue it, in rising order.
        edge: On which side the best rate is the last one tried: "low", "high" or "".
        rising: Whether the scores to compare still rise when the budget ends.
    """

    units: list[list[Spec]]
    best: Spec | None = None
    rates: list[float] = field(default_factory=list[float])
    edge: str = ""
    rising: bool = False


@dataclass(frozen=True)
class _Search:
    """The search for the best learning rate of a sweep whose grid has been trained."""

    study: "Study"
    sweep: Sweep
    by: By
    core: Sequence[Sweep]

    def units(self) -> list[list[Spec]]:
        """Return what the search takes beyond the grid, and the best run with the seeds that were added."""
        explored = self.explored()
        return explored.units + (self.study.units(explored.best)[1:] if explored.best else [])

    def explored(self) -> _Explored:
        """Return how far the search has come, by the seeds of the first look."""
        key = ("explored", self.sweep, self.by, tuple(self.core))
        if key in self.study.known:
            return self.study.known[key]
        rates = self._rates()
        units = [self.sweep.at(self.study, rate) for rate in rates if rate not in self.sweep.rates]
        if not all(self.study.trained(unit) for unit in units):
            return _Explored(units)
        steps = self.sweep.spec.steps
        best = self._best_of(rates, steps)
        if self._late_and_rising(best):
            at, steps = rates.index(best), self.study.settings.longer * steps
            around = rates[max(at - 1, 0) : at + 2]
            units += [self.sweep.at(self.study, rate, steps) for rate in around]
            if not all(self.study.trained(unit) for unit in units):
                return _Explored(units)
            best = self._best_of(around, steps)
        edge = "" if len(rates) < 2 else {rates[0]: "low", rates[-1]: "high"}.get(best, "")
        last = self.study.outcomes(self.sweep.at(self.study, best, steps))
        rising = self.by == "score" and self._rising(last)
        explored = _Explored(units, replace(self.sweep.spec, rate=best, steps=steps), rates, edge, rising)
        self.study.known[key] = explored
        return explored

    def _rates(self) -> list[float]:
        """Return the rates of the grid and those that continue it, the next one to try among them."""
        rates = sorted(self.sweep.rates)
        if len(rates) < 2:
            return rates
        stride = math.log10(rates[1] / rates[0])
        low, high, most = 0, 0, self.study.settings.extensions
        while all(self.study.trained(self.sweep.at(self.study, rate)) for rate in rates):
            best = self._best_of(rates, self.sweep.spec.steps)
            if best == rates[-1] and high < most:
                rates, high = [*rates, float(f"{10 ** (math.log10(best) + stride):.2g}")], high + 1
            elif best == rates[0] and low < most:
                rates, low = [float(f"{10 ** (math.log10(best) - stride):.2g}"), *rates], low + 1
            else:
                break
        return rates

    def _late_and_rising(self, rate: float) -> bool:
        """Whether the median score still rises and, where steps are compared, most runs have not arrived."""
        if self.sweep.spec.probe or self.study.settings.longer == 1:
            return False
        outcomes = self.study.outcomes(self.sweep.at(self.study, rate))
        late = sum(map(math.isinf, self._arrivals(outcomes)))
        return (self.by == "score" or 2 * late > len(outcomes)) and self._rising(outcomes)

    def _rising(self, outcomes: Sequence[Outcome]) -> bool:
        """Whether the median validation score of the second half of the steps still rises."""
        ranges = self.study.at(self.study.first).ranges(self.sweep.spec.data, self.core)
        way = statistics.median(r.validation - r.guess for r in ranges)
        half = max(i for i, step in enumerate(outcomes[0].steps) if 2 * step <= outcomes[0].steps[-1])
        gain = statistics.median(_score(o.validation[-1]) - _score(o.validation[half]) for o in outcomes)
        return way >= LEAST_WAY and gain > RISING * way

    def _arrivals(self, outcomes: Sequence[Outcome]) -> list[float]:
        at_first = self.study.at(self.study.first)
        return at_first.arrivals(outcomes, part="validation", data=self.sweep.spec.data, core=self.core)

    def _best_of(self, rates: Sequence[float], steps: int) -> float:
        """Return the best rate: the one with the fewest steps, or with the highest score, on validation rows.

        Steps are averaged geometrically over seeds, a run that has not arrived counting as ten times its budget. Rates
        with equal scores are ranked by steps, and those with equal steps by the final score. A rate at which half of
        the runs or more diverge comes last.
        """

        def rank(rate: float) -> tuple[bool, float, float, float]:
            outcomes = self.study.outcomes(self.sweep.at(self.study, rate, steps))
            end = statistics.median(_score(o.validation[-1]) for o in outcomes)
            diverges = math.isinf(end)
            best = statistics.median(_score(o.peak()[0]) for o in outcomes) if self.by == "score" else 0.0
            late = NEVER * steps
            logs = [math.log(max(min(arrival, late), 1.0)) for arrival in self._arrivals(outcomes)]
            return diverges, -best, statistics.fmean(logs), -end

        return min(rates, key=rank)


def _score(value: float) -> float:
    """Return a score as it is ranked: that of a run that has diverged is lower than any other."""
    return -math.inf if math.isnan(value) else value
