"""The study from beginning to end: prepare, train, measure claim by claim, write the report."""

import platform
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from joblib import cpu_count
from torch import nn

from batchnorm import __version__
from batchnorm.outputs import plain
from batchnorm.study import answer, own_model, pictures, report
from batchnorm.study.data import DataError, Dataset, split
from batchnorm.study.design import Settings, Study
from batchnorm.study.findings import Claim, Finding
from batchnorm.study.goals import with_goals
from batchnorm.study.lab import Lab, write_json
from batchnorm.study.shipped import breast_cancer, digits
from batchnorm.study.timing import step_seconds
from batchnorm.study.training import Problem, Rows, Spec, build
from batchnorm.surgery.factory import call_factory

TRANSIENT = ("--resume", "--json")


class Watcher(Protocol):
    """Who is told how a study goes on."""

    def planned(self, steps: dict[str, int], total: int) -> None:
        """Hear the work of each claim, and of all (they share runs), in training steps of one replica.

        Heard again, with larger numbers, when claims ask for more after their first runs.
        """

    def worked(self, claims: Sequence[str], steps: int) -> None:
        """Hear that so many steps are done, for these claims."""

    def measured(self, claim: Claim, finding: Finding) -> None:
        """Hear what a claim came to."""


@dataclass(frozen=True)
class Results:
    """What a study found.

    Attributes:
        reproducible: Everything the same seed and versions give again: the content of results.json.
        timings: Seconds, which they do not: the content of timings.json.
        folder: Where the report lies.
    """

    reproducible: dict[str, Any]
    timings: dict[str, Any]
    folder: Path


def prepare(settings: Settings, data: Dataset | None) -> Problem:
    """Set the goals and try the user's model on the data, before anything is trained or written."""
    main = with_goals(data or digits(), settings.seeds)
    datasets = {"main": main}
    if data is None and settings.model is None:
        datasets["scales"] = with_goals(breast_cancer(), settings.seeds)
    if settings.model is None:
        return Problem(datasets)
    made = call_factory("--model", settings.model)
    own = isinstance(made, nn.Module) and own_model.has_batch_norm(made)
    problem = Problem(datasets, settings.model, own)
    spec = Study(settings, Lab(problem, Path(), jobs=1, resume=True)).spec()
    build(problem, Rows.of(main, [spec]))
    try:
        build(problem, Rows.of(main, [replace(spec, placement="after")]))
    except DataError:  # activations that are functions can be normalised before, not after
        return replace(problem, own_normalizes=True)
    return problem


def fitting(settings: Settings, problem: Problem) -> Settings:
    """Return the settings with a batch size that the training rows can fill.

    Raises:
        DataError: if another batch size than the default was asked for and they cannot.
    """
    rows = len(split(problem.datasets["main"], 0).train)
    if settings.batch_size <= rows:
        return settings
    if settings.batch_size != Settings().batch_size:
        raise DataError(f"--batch-size must be at most {rows}, the rows trained on, got {settings.batch_size}")
    return replace(settings, batch_size=rows)


def run(
    data: Dataset | None = None,
    *,
    settings: Settings | None = None,
    claims: Sequence[Claim] | None = None,
    out: Path | str = "report",
    jobs: int | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
    command: Sequence[str] = ("batchnorm", "study"),
) -> Results:
    """Measure what batch normalization does on some data, and write a report.

    Args:
        data: A dataset; the handwritten digits of scikit-learn if None.
        settings: Seeds, optimizer and the like.
        claims: Which to measure; all if None.
        out: Folder of the report: index.html, results.json, timings.json, and the finished runs.
        jobs: Worker processes; one a core if None. The results do not depend on it.
        resume: Whether to take up finished runs that an interrupted study left in `out`.
        watcher: Told of progress.
        command: The words of the command line that runs it again, for the report.

    Returns:
        Everything measured; it is on disk too.

    Raises:
        DataError: if the data or the model cannot be studied; nothing is written then.
    """
    from batchnorm.study.claims import chosen_claims

    started = time.perf_counter()
    settings, claims = settings or Settings(), list(claims or chosen_claims(None))
    problem = prepare(settings, data)
    settings = fitting(settings, problem)
    folder = _own_folder(Path(out))
    study = Study(settings, Lab(problem, folder / "runs", jobs=jobs or cpu_count(), resume=resume))
    seconds = step_seconds(problem, study.spec(), sorted({size for c in claims for size in c.sizes(study)}))
    course = _Course(study, claims, watcher)
    course.run()
    findings = {c.id: course.found[c.id] for c in claims}
    timed = {c.id: c.timed(findings[c.id], seconds) for c in claims if not findings[c.id].skipped}
    results = _results(study, claims, findings, command)
    timings = {
        "seconds": round(time.perf_counter() - started, 1),
        "step_seconds": seconds,
        "effects": {claim: [e.as_json() for e in effects] for claim, effects in timed.items() if effects},
    }
    _write(folder, results, timings, claims, findings)
    return Results(results, timings, folder)


def _own_folder(folder: Path) -> Path:
    """Make the folder of a report; raise rather than write over a page that no study wrote."""
    for name, mark in (("index.html", "batchnorm study"), ("results.json", '"command"')):
        page = folder / name
        if page.exists() and mark not in page.read_text(encoding="utf-8", errors="replace"):
            raise DataError(f"{page} was not written by a study; name another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror}; name another folder with --out") from None
    return folder


class _Course:
    """Which claims wait for which runs; measures each as soon as its own are there, while others still train."""

    def __init__(self, study: Study, claims: Sequence[Claim], watcher: Watcher | None) -> None:
        self._study, self._watcher = study, watcher
        self.found: dict[str, Finding] = {}
        self._waiting: list[Claim] = []
        for claim in claims:
            if study.settings.model and not claim.own_model:
                self._note(claim, Finding(skipped="needs the base network, whose weights and width are the study's"))
            else:
                self._waiting.append(claim)
        self._wanted: dict[str, list[Spec]] = {c.id: list(c.runs(study)) for c in self._waiting}

    def run(self) -> None:
        """Train everything the claims ask for, shared runs once."""
        self._plan(chain(*self._wanted.values()))
        self._look()
        self._study.lab.train(self._finished)

    def _plan(self, specs: Iterable[Spec]) -> None:
        self._study.lab.ask(specs)
        if self._watcher:
            every = chain(*self._wanted.values())
            self._watcher.planned({c: _steps(specs) for c, specs in self._wanted.items()}, _steps(every))

    def _finished(self, chunk: Sequence[Spec]) -> None:
        if self._watcher:
            owners = [claim for claim, specs in self._wanted.items() if not set(chunk).isdisjoint(specs)]
            self._watcher.worked(owners, sum(s.steps for s in chunk))
        self._look()

    def _look(self) -> None:
        """Measure every claim whose runs are all there, or ask for those it wants next."""
        done = self._study.lab.outcomes
        for claim in [c for c in self._waiting if all(s in done for s in self._wanted[c.id])]:
            more = [s for s in claim.further(self._study) if s not in done]
            if more:
                self._wanted[claim.id] += more
                self._plan(more)
            else:
                self._waiting.remove(claim)
                self._note(claim, claim.measure(self._study))

    def _note(self, claim: Claim, finding: Finding) -> None:
        self.found[claim.id] = finding
        if self._watcher:
            self._watcher.measured(claim, finding)


def _steps(specs: Iterable[Spec]) -> int:
    return sum(spec.steps for spec in dict.fromkeys(specs))


def _results(
    study: Study, claims: Sequence[Claim], findings: dict[str, Finding], command: Sequence[str]
) -> dict[str, Any]:
    data, settings = study.data, study.settings
    setting = answer.recommend(study, findings)
    return {
        "version": __version__,
        "command": shlex.join(w for w in command if w not in TRANSIENT),
        "versions": _versions(),
        "settings": {**asdict(settings), "steps": settings.steps, "short_steps": settings.short_steps},
        "data": {
            "name": data.name,
            "source": data.source,
            "rows": len(data.x),
            "features": data.x[0].size,
            "task": data.task,
            "classes": data.classes,
            "scaling": data.scaling,
            "notes": data.notes,
            "goals": [study.goal(level=level) for level in ("easy", "hard")],
            "score": data.score_name,
        },
        "answer": answer.sentences(study, findings, setting),
        "recommended": asdict(setting) if setting else None,
        "code": answer.code(study, setting),
        "claims": [_claim_json(claim, findings[claim.id], command) for claim in claims],
    }


def _without_claims(command: Sequence[str]) -> list[str]:
    """Return the command without the options that the rerun of one claim replaces."""
    words = [w for w in command if w not in TRANSIENT and not w.startswith("--claims=")]
    return [w for i, w in enumerate(words) if w != "--claims" and (i == 0 or words[i - 1] != "--claims")]


def _claim_json(claim: Claim, finding: Finding, command: Sequence[str]) -> dict[str, Any]:
    words = {k: getattr(claim, k) for k in ("id", "statement", "source", "method", "caption")}
    return {
        **words,
        "summary": finding.summary,
        "verdict": finding.verdict(),
        "effects": [effect.as_json() for effect in finding.effects],
        "notes": finding.notes,
        "skipped": finding.skipped,
        "rerun": shlex.join([*_without_claims(command), "--claims", claim.id]),
        "numbers": finding.numbers,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": f"{sys.platform} {platform.machine()}"}
    for name in ("numpy", "torch", "scikit-learn", "scipy", "pandas", "matplotlib"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _write(
    folder: Path,
    results: dict[str, Any],
    timings: dict[str, Any],
    claims: Sequence[Claim],
    findings: dict[str, Finding],
) -> None:
    drawn = {
        claim.id: pictures.inline(claim.picture(findings[claim.id]), claim.id, claim.statement, claim.caption)
        for claim in claims
        if not findings[claim.id].skipped
    }
    write_json(folder / "results.json", results)
    write_json(folder / "timings.json", timings)
    shown = {**plain(results), "timings": plain(timings)}
    for claim in shown["claims"]:
        claim["effects"] = claim["effects"] + shown["timings"]["effects"].get(claim["id"], [])
    report.write(folder / "index.html", shown, drawn)
