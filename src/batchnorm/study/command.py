"""What `batchnorm study` does with its options: a profile, a list of claims, or a study and its report."""

import json
import sys
import webbrowser
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rich.console import Console, RenderableType

from batchnorm.study.options import Options, widths
from batchnorm.study.screen import Screen, claims_table, verdicts
from batchnorm.study.workers import opened

if TYPE_CHECKING:
    from batchnorm.study.data import Task
    from batchnorm.study.design import Settings


class Answer(NamedTuple):
    """What is printed.

    Attributes:
        json: As JSON.
        shown: For a terminal.
        refused: Whether no study can run on the data.
    """

    json: str
    shown: RenderableType
    refused: bool = False


def answer(options: Options, console: Console) -> Answer:
    """Do what the options ask for; show on the console how it goes on.

    Raises:
        BatchNormError: in one line, if the options, the data or the model are not fit for it.
    """
    if options.list_claims:
        claims = _listed(options, console)
        return Answer(_json(claims), claims_table(claims))
    return _profile(options, console) if options.check else _study(options, console)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _study(options: Options, console: Console) -> Answer:
    """Run the study and write its report; workers start first, and import PyTorch while this process does."""
    with opened(options.backend, options.jobs) as workers:
        with _loading(console):
            from batchnorm.study.claims import chosen_claims
            from batchnorm.study.runner import run
            from batchnorm.study.sources import chosen_data

            claims = chosen_claims(options.claims, quick=options.quick)
            data = chosen_data(
                options.table, options.target, options.task, options.data,
                drop=options.drop, no_header=options.no_header,
            )  # fmt: skip
        if data is not None and data.profile:
            from batchnorm.study.tables import profile_text

            console.print(profile_text(data))
        with Screen(console, claims) as watcher:
            results = run(
                data, settings=_settings(options), claims=claims, out=options.out, resume=options.resume,
                overwrite=options.overwrite, watcher=watcher, backend=workers,
                command=["batchnorm", *sys.argv[1:]],
            )  # fmt: skip
    if options.tensorboard is not None:
        from batchnorm.study.tensorboard import write

        write(results, options.tensorboard)
    return Answer((options.out / "results.json").read_text(encoding="utf-8"), verdicts(results))


def _loading(console: Console) -> Any:
    """Say that the libraries are being imported, which takes some seconds."""
    if not (console.is_terminal or console.stderr):
        console.print("Loading PyTorch and scikit-learn")
    return console.status("Loading PyTorch and scikit-learn")


def _settings(options: Options) -> "Settings":
    """Return the settings that the options ask for, and the defaults of the others."""
    from batchnorm.study.design import Settings

    texts = ("optimizer", "model", "loss", "activation", "metric")
    asked: dict[str, Any] = {name: getattr(options, name) for name in ("seeds", "batch_size", "quick", "seed")}
    asked["hidden"] = widths(options.hidden)
    for name in texts:
        value = getattr(options, name)
        asked[name] = None if value is None else str(value)  # of an enumeration, the value
    return Settings(**{name: value for name, value in asked.items() if value is not None})


def _profile(options: Options, console: Console) -> Answer:
    """Say what a table holds and what a study would make of it."""
    with _loading(console):
        from batchnorm.study.tables import inspect, profile_text

        path, task = cast(Path, options.table), cast("Task | None", options.task)
        header = False if options.no_header else None
        profile = inspect(path, options.target, task, drop=options.drop, header=header)
    content = {
        "name": profile.name,
        "rows": profile.rows,
        "columns": [{"column": c.name, "kind": c.kind, "note": c.note, "missing": c.gaps} for c in profile.columns],
        "warnings": profile.warnings,
        "problems": profile.problems,
    }
    return Answer(_json(content), profile_text(profile), refused=bool(profile.problems))


def _listed(options: Options, console: Console) -> list[dict[str, Any]]:
    """Return every claim with what it costs on the digits: the training steps of its first runs."""
    with _loading(console):
        from batchnorm.study.claims import all_claims
        from batchnorm.study.course import steps_in
        from batchnorm.study.design import Study
        from batchnorm.study.lab import Lab
        from batchnorm.study.runner import prepare

        settings = _settings(options)
        study = Study(settings, Lab(prepare(settings, None), Path()))
    return [
        {
            "id": claim.id, "title": claim.title, "statement": claim.statement, "source": claim.source,
            "check": claim.check, "steps": steps_in(s for unit in claim.runs(study) for s in unit),
        }
        for claim in all_claims().values()
    ]  # fmt: skip


def open_report(folder: Path) -> bool:
    """Open the report in the browser, quietly; return whether there is a browser."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            return webbrowser.open((folder / "index.html").absolute().as_uri())
    except (OSError, webbrowser.Error):
        return False
