"""Studies whose outcomes are made by hand, so that what a claim must say of them is known beforehand."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from batchnorm.study import intervals
from batchnorm.study.data import Dataset
from batchnorm.study.design import Settings, Study
from batchnorm.study.findings import Claim
from batchnorm.study.training import Outcome, Problem, Spec, evaluated_steps

Arrival = Callable[[Spec], float]
Answer = Callable[[Spec], Outcome]
LOW, HIGH = 0.5, 0.99  # of two even classes: what guessing scores, and what a run reaches
NEVER = math.inf
MARKS = evaluated_steps(120)  # the first steps at which every run of a quick study is evaluated


@dataclass(frozen=True)
class Quick(Settings):
    """Settings with grids and steps that tests can rely on, whatever those of a study come to be."""

    quick: bool = True

    @property
    def steps(self) -> int:
        return 250

    @property
    def short_steps(self) -> int:
        return 120

    @property
    def extensions(self) -> int:
        return 3

    @property
    def longer(self) -> int:
        return 4

    @property
    def schedule(self) -> tuple[int, ...]:
        return intervals.looks(self.seeds)

    @property
    def stride(self) -> float:
        return 1.0

    def rates(self, network: str) -> list[float]:
        grids = {"sigmoid": [0.01, 0.1, 1.0, 10.0, 100.0], "own": [0.001, 0.01, 0.1, 1.0]}
        return grids.get(network, [0.0032, 0.032, 0.32, 3.2])


QUICK = Quick()


def table(rows: int = 500, **changed: Any) -> Dataset:
    """Return a table of two even classes that nothing but its size is known of."""
    x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3) % 7
    data = Dataset("two classes", "made by hand", x, np.arange(rows) % 2, "classification", ("no", "yes"))
    return replace(data, **{"metric": "accuracy", **changed})


PROBLEM = Problem({"main": table()})


@dataclass
class HandLab:
    """A lab that trains nothing: its runs have the outcomes that are made for them.

    Like a lab's, its units of runs must be equal or disjoint.
    """

    problem: Problem
    how: Answer | None = None
    outcomes: dict[Spec, Outcome] = field(default_factory=dict)
    units: list[list[Spec]] = field(default_factory=list)
    waiting: list[list[Spec]] = field(default_factory=list)
    workers: Any = field(default_factory=lambda: SimpleNamespace(jobs=1, name="hand"))

    def ask(self, unit: Iterable[Spec]) -> None:
        runs = list(dict.fromkeys(unit))
        for other in self.units:
            if not set(runs).isdisjoint(other):
                assert set(runs) == set(other), f"two units share runs and are not equal: {runs[0]}"
                return
        self.units.append(runs)
        self.waiting.append(runs)

    def train(self, finished: Callable[[Sequence[Spec]], None], ready: Callable[[], object] = lambda: None) -> None:
        ready()
        while self.waiting:
            unit = self.waiting.pop(0)
            self.outcomes.update((spec, self.how(spec)) for spec in unit)
            finished(unit)

    def seconds(self) -> float:
        return 0.0

    def __getitem__(self, spec: Spec) -> Outcome:
        return self.outcomes[spec]


def study_of(
    settings: Settings = QUICK, problem: Problem = PROBLEM, count: int = 0, how: Answer | None = None
) -> Study:
    """Return a study without outcomes; its lab makes them as `how` says."""
    return Study(settings, HandLab(problem, how), count)


def jump(spec: Spec, arrival: float, high: float = HIGH, low: float = LOW) -> Outcome:
    """Return a run that stands at `low` and jumps to `high` at the evaluated step `arrival`, to stay there."""
    steps = evaluated_steps(spec.steps)
    scores = [high if at >= arrival else low for at in steps]
    return Outcome(steps, scores, list(scores))


def arriving(arrival: Arrival) -> Answer:
    """Return the answer that lets each run jump at the step that `arrival` names."""
    return lambda spec: jump(spec, arrival(spec))


def diverged(outcome: Outcome, after: int = 0) -> Outcome:
    """Return the outcome with NaN for every score after a step."""
    validation, test = (
        [score if at <= after else math.nan for at, score in zip(outcome.steps, scores, strict=True)]
        for scores in (outcome.validation, outcome.test)
    )
    return replace(outcome, validation=validation, test=test)


def answer(study: Study, how: Answer, *asks: Callable[[Study], Iterable[Sequence[Spec]]]) -> Study:
    """Give every run that is asked for its outcome, until nothing new is asked for; return the study."""
    study.lab.how = how
    for ask in asks:
        while missing := [unit for unit in ask(study) if not study.trained(unit)]:
            for unit in missing:
                study.lab.ask(unit)
            study.lab.train(lambda _: None)
    return study


def answered(how: Answer, *claims: Claim, **of: Any) -> Study:
    """Return a study in which everything that the claims ask for has been trained."""
    return answer(study_of(**of), how, *(claim.runs for claim in claims))


MIDDLE = {"relu": 0.32, "sigmoid": 1.0, "own": 0.1}  # the best rates of `compared`
LATE, EARLY = 41, 10


def compared(turned: Callable[[int], bool], higher: Callable[[int], bool]) -> Answer:
    """Without it late and with it early, or turned round for some seeds; its score higher in some, else lower."""

    def how(spec: Spec) -> Outcome:
        if spec.rate != MIDDLE[spec.activation]:
            return jump(spec, 97, high=0.95)
        with_it = spec.placement != "none"
        better = HIGH if with_it == higher(spec.seed) else HIGH - 0.02
        return jump(spec, LATE if with_it == turned(spec.seed) else EARLY, high=better)

    return how


def always(_: int) -> bool:
    return True


def never(_: int) -> bool:
    return False


def odd(seed: int) -> bool:
    return seed % 2 == 1


def late_in(network: str, without: Callable[[int], bool], with_it: Callable[[int], bool]) -> Answer:
    """Runs of one network never arrive in some seeds; all others do."""

    def how(spec: Spec) -> Outcome:
        late = (with_it if spec.placement != "none" else without)(spec.seed)
        middle = spec.rate == MIDDLE[spec.activation]
        if spec.activation == network and (late or not middle):
            return jump(spec, 1, high=0.8 if middle else 0.7)
        return compared(never, always)(spec)

    return how
