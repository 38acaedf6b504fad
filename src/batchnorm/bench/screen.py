"""A run on the terminal: how far it is, the table, the goals."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from batchnorm.bench.cases import Case, written
from batchnorm.bench.contenders import BASELINE, CONTENDERS, OURS
from batchnorm.bench.goals import Judged, judge
from batchnorm.bench.machine import REMARK
from batchnorm.bench.results import Results, Row

WIDTH = 124  # of a file, and of a terminal that shows every contender: rows are not to be broken
MARKS = {True: "[green]✓ met[/]", False: "[red]✗ missed[/]", None: "[dim]– not measured[/]"}
ALWAYS_S = 0.5  # of work in a case, however small, in the length of the bar


def milliseconds(seconds: float | None) -> str:
    """Return a time in ms to three significant digits, as people write it.

    >>> milliseconds(0.0123456), milliseconds(1.2345), milliseconds(None)
    ('12.3', '1234', '–')
    """
    if seconds is None:
        return "–"
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(value: float | None, unit: str = "×") -> str:
    """Return a ratio or a share.

    >>> times(2.345), times(0.7154, "%"), times(None)
    ('2.35×', '72 %', '–')
    """
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" if unit == "%" else f"{value:.2f}×"


class Screen:
    """Shows how a run goes on, on the stream for errors."""

    def __init__(self, console: Console, cases: Sequence[Case], modes: int) -> None:
        """Prepare a bar as long as the work."""
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=1,  # what is timed needs the processors
        )
        self._bar = self._progress.add_task("starting", total=modes * sum(map(_work, cases)))

    def __enter__(self) -> "Screen":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, mode: str, case: Case) -> None:
        """Show what is measured."""
        self._progress.update(self._bar, description=f"memory {mode}: {case.name}")

    def done(self, case: Case, rows: Sequence[Row]) -> None:
        """Advance the bar; say at once who has failed."""
        self._progress.advance(self._bar, _work(case))
        if not self._console.is_terminal:
            ours = next((row for row in rows if row.contender == OURS), None)
            told = "not timed" if ours is None else f"{milliseconds(ours.min_s)} ms, {times(ours.ratio)}"
            self._console.print(f"{case.name}: {told}", highlight=False, soft_wrap=True)
        for row in rows:
            if row.failure is not None:
                self._console.print(
                    f"[red]{row.contender}[/], {case.name}: {escape(row.failure)}", highlight=False, soft_wrap=True
                )


def _work(case: Case) -> float:
    return ALWAYS_S + case.array_bytes * case.operation.moved / 1e8


def heading(results: Results) -> str:
    """Return on what and how it was measured, some lines."""
    machine, settings = results.machine, results.settings
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; {settings['threads']} threads for every contender",
        f"{machine['system']}; {versions}",
        f"{settings['rounds']} rounds, contenders in turn; times are of one call",
        f"memory: {' and '.join(settings['modes'])}",
        f"copy of the largest array: {_copies(results.rows)}",
        f"vs torch: least time of `{BASELINE}` ÷ least time: 2× is twice as fast",
        "roofline: the least bytes, each array once (a channel stays in the cache between two sweeps), over what the",
        "fastest copy of an array of that size moves in the least time",
    ]
    return "\n".join([*lines, *results.notes, *([] if results.finished else ["INTERRUPTED: what was finished"])])


def _copies(rows: Sequence[Row]) -> str:
    found: list[str] = []
    for mode in dict.fromkeys(row.memory for row in rows):
        of_mode = [row for row in rows if row.memory == mode and row.bandwidth is not None]
        if of_mode:
            largest = max(row.case.array_bytes for row in of_mode)
            rates = sorted({row.bandwidth or 0.0 for row in of_mode if row.case.array_bytes == largest})
            found.append(f"{rates[len(rates) // 2] / 1e9:.1f} GB/s ({largest / 2**20:.0f} MiB, memory {mode})")
    return ", ".join(found) or "not timed, all arrays are small"


def table(rows: Sequence[Row], title: str = "") -> Table:
    """Return the table: a row a contender."""
    made = Table(title=title or None, title_justify="left", title_style="bold")
    for column in ("shape", "layout", "dtype", "operation", "contender"):
        made.add_column(column, no_wrap=True)
    for column in ("min ms", "median ms", "vs torch", "roofline"):
        made.add_column(column, justify="right", no_wrap=True)
    for case, of_case in groupby(rows, key=lambda row: row.case):
        named = [written(case.shape), case.layout, case.dtype, case.op]
        for row in of_case:
            made.add_row(*named, *_cells(row))
            named = [""] * 4
        made.add_section()
    return made


def _cells(row: Row) -> list[RenderableType]:
    style = "bold" if row.contender == OURS else ""
    name = Text(row.contender + (f" ({row.kernel})" if row.kernel else ""), style)
    if row.failure is not None:
        return [name, *[Text(text, "red") for text in ("failed", "", "", "")]]
    told = (milliseconds(row.min_s), milliseconds(row.median_s), times(row.ratio), times(row.share, "%"))
    return [name, *[Text(text, style) for text in told]]


def goals_table(judged: Sequence[Judged], mode: str) -> Table:
    """Return the goals beside what was measured."""
    title = f"Goals, {OURS} against {BASELINE}: geometric mean and worst case, memory {mode}" + (
        "" if mode == "kept" else ": for comparison, the goals are for memory kept"
    )
    made = Table("goal", title=title, title_justify="left", title_style="bold")
    for column in ("cases", "mean", "worst", "worst case", ""):
        made.add_column(column, no_wrap=column != "worst case")
    for one in judged:
        failed = f", {one.failed} failed" if one.failed else ""
        made.add_row(
            one.says,
            f"{one.cases}{failed}",
            f"{times(one.mean, one.unit)} of ≥ {times(one.mean_goal, one.unit)}",
            f"{times(one.worst, one.unit)} of ≥ {times(one.worst_goal, one.unit)}",
            one.where or "–",
            MARKS[one.met],
        )
    return made


def brief(rows: Sequence[Row], title: str) -> Table:
    """Return the table for a narrow terminal: a row a case, of this layer alone."""
    made = Table("case", title=title, title_justify="left", title_style="bold")
    for column in ("ms", "vs torch", "roofline"):
        made.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if row.contender == OURS:
            told = (milliseconds(row.min_s), times(row.ratio), times(row.share, "%"))
            made.add_row(row.case.name, *(("[red]failed[/]", "", "") if row.failure is not None else told))
    return made


def summary(results: Results) -> list[str]:
    """Return how the layer compares with torch's, a line a kind of case; nothing where the machine was busy."""
    if any(note.startswith(REMARK) for note in results.notes):
        return ["no summary: what is measured on a busy machine is no verdict; ask again on an idle one"]
    return [
        f"{one.says}: {times(one.mean, one.unit)} on average, {times(one.worst, one.unit)} at {one.where}"
        for one in judge(results.rows)
        if one.mean is not None and one.memory == results.settings["modes"][0]
    ]


def on_screen(results: Results, width: int) -> RenderableType:
    """Return what a user reads on a terminal so wide: every contender where there is room for them."""
    wide = width >= WIDTH
    parts: list[Any] = [Text(note, "yellow") for note in results.notes]
    parts.append(Text(heading(replace(results, notes=[])), no_wrap=False))
    for mode in dict.fromkeys(row.memory for row in results.rows):
        of_mode = [row for row in results.rows if row.memory == mode]
        parts.append((table if wide else brief)(of_mode, f"Memory {mode}"))
    parts += [Text(line) for line in summary(results)]
    if not wide:
        parts.append(Text(f"{OURS} alone; --out and a terminal of {WIDTH} columns show every contender", "dim"))
    parts += _failures(results)
    return Group(*parts)


def _failures(results: Results) -> list[Text]:
    return [
        Text(f"failed, memory {row.memory}: {row.contender}, {row.case.name}: {row.failure}")
        for row in results.rows
        if row.failure is not None
    ]


def page(results: Results) -> RenderableType:
    """Return all there is to say: heading, a table a mode, goals, and who the contenders are."""
    parts: list[Any] = [Text(heading(results), no_wrap=False)]
    for mode in dict.fromkeys(row.memory for row in results.rows):
        parts.append(table([row for row in results.rows if row.memory == mode], f"Memory {mode}"))
    judged = judge(results.rows)
    for mode in dict.fromkeys(one.memory for one in judged):
        of_mode = [one for one in judged if one.memory == mode and (one.cases or one.failed)]
        if of_mode:
            parts.append(goals_table(of_mode, mode))
    for name in dict.fromkeys(row.contender for row in results.rows):
        parts.append(Text(f"{name}: {CONTENDERS[name].says}" if name in CONTENDERS else name))
    return Group(*parts, *_failures(results))
