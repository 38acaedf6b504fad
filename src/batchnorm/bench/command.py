"""What `batchnorm bench` is asked, and what it leaves behind."""

import io
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from batchnorm.bench import cases as of
from batchnorm.bench.contenders import OURS, QUICK_CONTENDERS, available, parsed_contenders
from batchnorm.bench.machine import busy, machine, usable_processors
from batchnorm.bench.measure import Settings
from batchnorm.bench.memory import MODES
from batchnorm.bench.results import Results
from batchnorm.bench.screen import WIDTH, on_screen, page
from batchnorm.errors import ArgumentError, MissingExtraError
from batchnorm.outputs import check_file, written

PICTURES = (".png", ".svg")
ENDINGS = (".txt", ".json")
ROUNDS, QUICK_ROUNDS = 15, 7
DEFAULT_DTYPES = ("float32", "bfloat16")


def chosen_cases(shapes: str | None, dtypes: str | None, ops: str | None, *, quick: bool) -> list[of.Case]:
    """Return the cases that the command line names.

    Raises:
        ArgumentError: for a shape, a dtype or an operation that there is not.
    """
    usual = of.in_layouts(of.QUICK_SHAPES if quick else of.SHAPES)
    return of.cases(
        of.parsed_shapes(shapes) if shapes is not None else usual,
        _named("--dtypes", dtypes, tuple(of.BYTES), DEFAULT_DTYPES[:1] if quick else DEFAULT_DTYPES),
        _named("--ops", ops, tuple(of.OPS), of.QUICK_OPS if quick else of.DEFAULT_OPS),
    )


def _named(option: str, text: str | None, known: Sequence[str], otherwise: Sequence[str]) -> list[str]:
    if text is None:
        return list(otherwise)
    named = [part.strip() for part in text.split(",")]
    for name in named:
        if name not in known:
            raise ArgumentError(f"`{option}` must be of {', '.join(known)}, got {name!r}")
    return list(dict.fromkeys(named))


def settings(contenders: str | None, *, threads: int | None, rounds: int | None, memory: str, quick: bool) -> Settings:
    """Return how to measure.

    Raises:
        ArgumentError: for a contender that there is not, or more threads than processors.
    """
    names = parsed_contenders(contenders, QUICK_CONTENDERS if quick else available())
    most = usable_processors()
    if threads is not None and threads > most:
        raise ArgumentError(f"`--threads` must be at most the {most} processors there are, got {threads}")
    modes = MODES if memory == "both" else (memory,)
    return Settings(tuple(names), threads or most, rounds or (QUICK_ROUNDS if quick else ROUNDS), modes)


def empty_results(chosen: Settings, command: Sequence[str]) -> Results:
    """Return results that hold nothing yet, of this machine."""
    told = {**asdict(chosen), "contenders": list(chosen.contenders), "modes": list(chosen.modes)}
    remark = busy()
    return Results(machine(), told, list(command), [] if remark is None else [remark])


def check_read(read: Path | None, asked: dict[str, object]) -> None:
    """Refuse what says how to measure where nothing is measured.

    Raises:
        ArgumentError: if something does.
    """
    told = [f"--{name}" for name, value in asked.items() if value is not None]
    if read is not None and told:
        raise ArgumentError(
            f"`--from` shows what was measured, and {', '.join(told)} says what to measure: drop one of them"
        )


def check_files(out: Path | None, chart: Path | None, cases: Sequence[of.Case] | None = None) -> None:
    """Refuse files that cannot be written, and a chart that would be empty, before anything is measured.

    Raises:
        ArgumentError: if a folder is not there, a chart's ending is no picture's, or it would show none of the cases.
        MissingExtraError: if there is nothing to draw a chart with.
    """
    for file in [] if out is None else files(out):
        check_file("--out", file)
    if chart is None:
        return
    check_file("--chart", chart, PICTURES)
    if find_spec("matplotlib") is None:
        raise MissingExtraError("batchnorm bench --chart", "matplotlib", "study")
    if cases is not None:
        from batchnorm.bench.chart import check

        check(cases)


def files(out: Path) -> tuple[Path, Path]:
    """Return the files of the table and of the numbers: the ending is added, for 2.13 ends in none.

    Raises:
        ArgumentError: if there is no name to add it to.

    >>> [file.name for file in files(Path("torch-2.13"))], [file.name for file in files(Path("run.json"))]
    (['torch-2.13.txt', 'torch-2.13.json'], ['run.txt', 'run.json'])
    """
    stem = out.with_suffix("") if out.suffix.lower() in ENDINGS else out
    if not stem.name or stem.name == "..":
        raise ArgumentError(f"`--out` must be the name of files without their ending, got {out}; write {out}/bench")
    return stem.with_name(f"{stem.name}.txt"), stem.with_name(f"{stem.name}.json")


def write(results: Results, out: Path) -> None:
    """Write the table to OUT.txt and the numbers to OUT.json."""
    text, numbers = files(out)
    page_of = io.StringIO()
    Console(file=page_of, width=WIDTH, color_system=None).print(page(results), highlight=False)
    lines = [line.rstrip() for line in page_of.getvalue().splitlines()]
    for path, content in ((text, "\n".join(lines) + "\n"), (numbers, results.to_json())):
        with written("--out", path) as draft:
            draft.write_text(content, encoding="utf-8")


def show(results: Results, console: Console) -> None:
    """Print the table, a summary and what they were measured on, as wide as the terminal is."""
    console.print(on_screen(results, console.width), highlight=False)


def draw(results: Results, chart: Path) -> None:
    """Write the chart."""
    from batchnorm.bench.chart import save

    with written("--chart", chart) as draft:
        save(results, draft)


def wrong(results: Results) -> bool:
    """Return whether a case of ours was refused: it computed something else than float64 does, or failed."""
    return any(row.contender == OURS and row.failure is not None for row in results.rows)
