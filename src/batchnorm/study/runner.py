"""The study from beginning to end: prepare, train, measure claim by claim, write the report."""

import importlib
import platform
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from batchnorm import __version__
from batchnorm.outputs import plain, write_whole
from batchnorm.study import answer, explore, own_trial, report
from batchnorm.study.advised import advised
from batchnorm.study.course import Course, Watcher
from batchnorm.study.data import DataError, Dataset, Task, split
from batchnorm.study.design import Settings, Study
from batchnorm.study.drawn import Drawn
from batchnorm.study.findings import Claim, Finding
from batchnorm.study.folder import RUNS, open_folder
from batchnorm.study.kept import Kept, fingerprint, write_json
from batchnorm.study.lab import Lab
from batchnorm.study.references import References, references
from batchnorm.study.scores import METRICS, chosen_metric
from batchnorm.study.script import scripts
from batchnorm.study.shipped import breast_cancer, digits
from batchnorm.study.sources import as_dataset
from batchnorm.study.timing import step_seconds
from batchnorm.study.training import Problem
from batchnorm.study.workers import Workers, opened

TRANSIENT = ("--resume", "--json", "--overwrite", "--open")


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

    @property
    def answer(self) -> list[str]:
        """The answer in three sentences, with the seconds of this machine."""
        return self.timings["answer"]

    @property
    def shown(self) -> dict[str, Any]:
        """What the report shows: the results, with what the seconds add to them."""
        shown: dict[str, Any] = {**plain(self.reproducible), "timings": plain(self.timings), "answer": self.answer}
        shown["scripts"] = self.timings["scripts"]
        for claim in shown["claims"]:
            claim["effects"] = claim["effects"] + shown["timings"]["effects"].get(claim["id"], [])
        return shown

    def _repr_html_(self) -> str:
        """Show the answer, its picture and the verdicts in a notebook."""
        return report.repr_html(self.shown)


def prepare(settings: Settings, data: Dataset | None) -> Problem:
    """Choose the score and try the user's model on the data, before anything is trained or written."""
    main = data or digits()
    datasets = {"main": own_trial.completed(main, model=settings.model, loss=settings.loss, metric=settings.metric)}
    if data is None and settings.model is None:
        scales = breast_cancer()
        datasets["scales"] = replace(scales, metric=chosen_metric(None, scales).id)
    if settings.model is None:
        return Problem(datasets)
    problem = Problem(datasets, settings.model)
    return own_trial.tried(problem, Study(settings, Lab(problem, Path())).spec())


def fitting(settings: Settings, problem: Problem) -> Settings:
    """Return the settings with a batch size that the training rows can fill.

    Raises:
        DataError: if another batch size than the default was asked for and they cannot.
    """
    data = problem.datasets["main"]
    rows = len(split(data, 0).train)
    if data.batch_size is not None and settings.batch_size == Settings().batch_size:
        return replace(settings, batch_size=min(data.batch_size, rows))
    if settings.batch_size <= rows:
        return settings
    if settings.batch_size != Settings().batch_size:
        raise DataError(f"--batch-size must be at most {rows}, the rows trained on, got {settings.batch_size}")
    return replace(settings, batch_size=rows)


def run(
    data: Any = None,
    target: str | int | None = None,
    *,
    task: Task | None = None,
    settings: Settings | None = None,
    claims: Sequence[Claim] | None = None,
    out: Path | str = "report",
    jobs: int | None = None,
    backend: str | Workers = "processes",
    resume: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
    command: Sequence[str] = ("batchnorm", "study"),
) -> Results:
    """Measure what batch normalization does on some data, and write a report.

    Args:
        data: A pandas DataFrame, with a target; arrays or tensors (x, y), or whatever else a `--data` factory may
            return; or a `Dataset`. The handwritten digits of scikit-learn if None.
        target: The column of a DataFrame to predict, by name or place.
        task: What that column is; inferred if None.
        settings: Seeds, optimizer and the like.
        claims: Which to measure. If None, all, or in a quick study those that the answer rests on.
        out: Folder of the report: index.html, results.json, timings.json, and the finished runs.
        jobs: Workers; one a core if None. The results do not depend on it.
        backend: Where they are: "processes" on this machine, "ray" or "dask"; or workers that were started before.
        resume: Whether to take up finished runs that an interrupted study left in `out`.
        overwrite: Whether to replace a report of other data, if there is one in `out`.
        watcher: Told of progress.
        command: The words of the command line that runs it again, for the report.

    Returns:
        Everything measured; it is on disk too.

    Raises:
        DataError: if the data or the model cannot be studied; nothing is written then.
    """
    from batchnorm.study.claims import chosen_claims

    started = time.perf_counter()
    settings = settings or Settings()
    claims = list(claims or chosen_claims(None, quick=settings.quick))
    problem = prepare(settings, as_dataset(data, target, task))
    settings = fitting(settings, problem)
    main, folder = problem.datasets["main"], Path(out)
    open_folder(folder, main.name, fingerprint(main), overwrite=overwrite)
    with opened(backend, jobs) as workers:
        frame = workers.submit(references, main, METRICS[main.metric], settings.seed)
        if frame.done():
            frame.result()
        study = Study(settings, Lab(problem, folder / RUNS, workers=workers, resume=resume))
        drawn = Drawn()
        course = Course(
            study, claims, watcher, measured=drawn.draw_early, trained=partial(_meanwhile, frame, study.lab.kept)
        )
        course.run()
    seconds = step_seconds(problem, study.spec(), sorted({size for c in claims for size in c.sizes(study)}))
    findings = {c.id: course.findings[c.id] for c in claims}
    timed = {c.id: c.timed(findings[c.id], seconds) for c in claims if not findings[c.id].skipped}
    results = _results(study, frame.result(), claims, course, command)
    ratio, chosen = next(iter(timed.get("speed", ())), None), answer.recommend(study)
    setting = None if chosen is None else advised(study, chosen.setting)
    timings = {
        "seconds": round(time.perf_counter() - started, 1),
        "step_seconds": seconds,
        "answer": answer.sentences(study, findings, chosen, ratio, frame.result().models),
        "advised": asdict(setting) if setting else None,
        "scripts": scripts(study.data, setting, model=settings.model, folder=folder) if setting else {},
        "effects": {claim: [e.as_json() for e in effects] for claim, effects in timed.items() if effects},
    }
    study_results = Results(results, timings, folder)
    _write_numbers(study_results)
    shown = {c.id: drawn.of(c, findings[c.id]) for c in claims if not findings[c.id].skipped}
    report.write(folder / "index.html", study_results.shown, shown)
    study.lab.kept.tidy()
    return study_results


def _meanwhile(frame: "Future[References]", kept: Kept) -> None:
    """End the study, as if it had not begun, where reference models predict no better than guessing."""
    _import_ahead()
    if frame.done() and frame.exception() is not None:
        kept.discard()
        frame.result()


@cache
def _import_ahead() -> None:
    """Import, while others train, what `torch.optim` imports when it is first used, for the advice at the end."""
    threading.Thread(target=importlib.import_module, args=("torch._dynamo",), daemon=True).start()


def _results(
    study: Study, frame: References, claims: Sequence[Claim], course: Course, command: Sequence[str]
) -> dict[str, Any]:
    settings, findings = study.settings, course.findings
    setting = answer.recommend(study)
    return {
        "version": __version__,
        "command": shlex.join(w for w in command if w not in TRANSIENT),
        "versions": _versions(),
        "settings": {
            **asdict(settings),
            "seeds": settings.schedule[-1],
            "steps": settings.steps,
            "short_steps": settings.short_steps,
        },
        "data": _data_json(study, frame),
        "answer": answer.sentences(study, findings, setting, references=frame.models),
        "recommended": asdict(setting.setting) if setting else None,
        "multiplicity": answer.multiplicity(findings),
        "claims": [_claim_json(claim, findings[claim.id], course.counts.get(claim.id, 0), command) for claim in claims],
        "explore": explore.curves(study),
        "explore_sizes": explore.sizes(findings),
    }


def _data_json(study: Study, frame: References) -> dict[str, Any]:
    data = study.data
    core = study.trained(s for sweep in study.core for s in sweep.unit(study))
    fixed = dict(zip(("near", "goal"), data.fixed_goals, strict=True)) if data.fixed_goals else {}
    return {
        "name": data.name,
        "fingerprint": fingerprint(data),
        "source": data.source,
        "rows": len(data.x),
        "features": data.x[0].size,
        "task": data.task,
        "classes": data.classes,
        "scaling": data.scaling,
        "notes": data.notes,
        "profile": [{"column": c.name, "kind": c.kind, "note": c.note} for c in data.profile],
        "metric": data.metric,
        "score": study.metric.name,
        "guess": frame.guess,
        "references": frame.models,
        "reach": study.reach() if core else None,
        "goals": {level: study.goal(level) for level in ("near", "goal")} if core else fixed,
    }


def _without_claims(command: Sequence[str]) -> list[str]:
    """Return the command without the options that the rerun of one claim replaces."""
    words = [w for w in command if w not in TRANSIENT and not w.startswith("--claims=")]
    return [w for i, w in enumerate(words) if w != "--claims" and (i == 0 or words[i - 1] != "--claims")]


def _claim_json(claim: Claim, finding: Finding, count: int, command: Sequence[str]) -> dict[str, Any]:
    words = {k: getattr(claim, k) for k in ("id", "title", "statement", "source", "method", "caption", "check")}
    return {
        **words,
        "summary": finding.summary,
        "verdict": finding.verdict(),
        "parts": finding.parts(),
        "seeds": count,
        "effects": [effect.as_json() for effect in finding.effects],
        "notes": finding.notes,
        "skipped": finding.skipped,
        "rerun": shlex.join([*_without_claims(command), "--claims", claim.id]),
        "numbers": finding.numbers,
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": f"{sys.platform} {platform.machine()}"}
    for name in ("numpy", "torch", "scikit-learn", "scipy", "pandas", "matplotlib"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _write_numbers(results: Results) -> None:
    """Write the numbers and the scripts: whatever becomes of the pictures, these are there."""
    folder = results.folder
    write_json(folder / "results.json", results.reproducible)
    write_json(folder / "timings.json", results.timings)
    for name, text in results.timings["scripts"].items():
        write_whole(folder / {"PyTorch": "train.py", "Keras": "train_keras.py"}[name], text)
