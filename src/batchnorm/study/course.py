"""The course of a study: which claims wait for which runs, and when the seeds are enough."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Finding
from batchnorm.study.training import Spec


@dataclass(frozen=True)
class Plan:
    """The work of a study as far as it is known: claims ask for more after their first runs.

    Attributes:
        claims: The training steps of each claim's runs, by id; claims share runs.
        steps: The training steps of all runs.
        left: Those that have not been trained yet.
        runs: The runs that have not been trained yet.
        seconds: About how long they will take.
        jobs: How many workers there are.
        backend: Where they are.
    """

    claims: dict[str, int]
    steps: int
    left: int
    runs: int
    seconds: float
    jobs: int
    backend: str


class Watcher(Protocol):
    """Who is told how a study goes on."""

    def planned(self, plan: Plan) -> None:
        """Hear of the work; heard again, with larger numbers, when claims ask for more after their first runs."""

    def worked(self, claims: Sequence[str], steps: int) -> None:
        """Hear that so many steps are done, for these claims."""

    def measured(self, claim: Claim, finding: Finding) -> None:
        """Hear what a claim came to."""


@dataclass
class _Progress:
    """How far a claim has come: the study as it looks at it, the runs it has asked for, and those that are missing."""

    study: Study
    wanted: dict[Spec, None] = field(default_factory=dict[Spec, None])
    missing: set[Spec] = field(default_factory=set[Spec])


class Course:
    """Trains what the claims ask for and measures each as soon as its own runs are there, while others still train.

    Attributes:
        findings: What each claim came to, by id.
        counts: How many seeds each claim was decided on.
    """

    def __init__(
        self, study: Study, claims: Sequence[Claim], watcher: Watcher | None = None, *,
        measured: Callable[[Claim, Finding], None] = lambda _claim, _finding: None,
        trained: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Plan the claims; those that cannot be measured on a model of the user's own are skipped.

        Args:
            study: What they are measured on.
            claims: Which.
            watcher: Told of progress.
            measured: Called with each claim that is not skipped, when it has been measured.
            trained: Called whenever runs have been trained; what it raises ends the course.
        """
        self._study, self._watcher, self._measured, self._trained = study, watcher, measured, trained
        self.findings: dict[str, Finding] = {}
        self.counts: dict[str, int] = {}
        self._claims = {claim.id: claim for claim in claims}
        self._waiting: dict[str, _Progress] = {}
        for claim in claims:
            if study.settings.model and not claim.own_model:
                self._note(claim, Finding(skipped="needs the base network, whose weights and width are the study's"))
            else:
                self._waiting[claim.id] = _Progress(study)

    def run(self) -> None:
        """Train everything the claims ask for, shared runs once."""
        self._look()
        self._study.lab.train(self._finished)

    def _finished(self, chunk: Sequence[Spec]) -> None:
        self._trained()
        if self._watcher:
            owners = [c for c, progress in self._waiting.items() if not progress.wanted.keys().isdisjoint(chunk)]
            self._watcher.worked(owners, steps_in(chunk))
        for progress in self._waiting.values():
            progress.missing.difference_update(chunk)
        self._look()

    def _look(self) -> None:
        """Measure every claim whose runs are all there, or ask for those it wants next."""
        asked = False
        for name, progress in list(self._waiting.items()):
            while not progress.missing and name in self._waiting:
                units = [list(unit) for unit in self._claims[name].runs(progress.study)]
                new = [s for unit in units for s in unit if s not in progress.wanted]
                if new:
                    progress.wanted.update(dict.fromkeys(new))
                    progress.missing = {s for s in new if s not in self._study.lab.outcomes}
                    for unit in units:
                        self._study.lab.ask(unit)
                    asked = True
                else:
                    self._measure(self._claims[name], progress)
        if asked:
            self._plan()

    def _measure(self, claim: Claim, progress: _Progress) -> None:
        """Measure a claim; if it is undecided and may use more seeds, let it ask for their runs."""
        study = progress.study
        finding = claim.measure(study).scheduled(study.settings.schedule, check=claim.check)
        later = [count for count in study.settings.schedule if count > study.count]
        if claim.adds_seeds and later and finding.open:
            progress.study = study.at(later[0])
            return
        del self._waiting[claim.id]
        self.counts[claim.id] = study.count
        self._note(claim, finding)

    def _plan(self) -> None:
        if self._watcher is None:
            return
        lab = self._study.lab
        wanted = {claim: progress.wanted for claim, progress in self._waiting.items()}
        every = dict.fromkeys(chain(lab.outcomes, *wanted.values()))
        left = [s for s in every if s not in lab.outcomes]
        steps = {claim: steps_in(specs) for claim, specs in wanted.items()}
        where = lab.workers.jobs, lab.workers.name
        self._watcher.planned(Plan(steps, steps_in(every), steps_in(left), len(left), lab.seconds(), *where))

    def _note(self, claim: Claim, finding: Finding) -> None:
        self.findings[claim.id] = finding
        if self._watcher:
            self._watcher.measured(claim, finding)
        if not finding.skipped:
            self._measured(claim, finding)


def steps_in(specs: Iterable[Spec]) -> int:
    """Return the training steps of some runs, each counted once."""
    return sum(spec.steps for spec in dict.fromkeys(specs))
