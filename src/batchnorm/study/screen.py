"""A study on the terminal: plan and progress while it runs, the verdicts at the end."""

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from batchnorm.outputs import printable
from batchnorm.study.options import claim_names

if TYPE_CHECKING:
    from batchnorm.study.course import Plan
    from batchnorm.study.findings import Claim, Finding
    from batchnorm.study.runner import Results

MARKS = {
    "holds": ("✓", "green"),
    "passes": ("✓", "green"),
    "does not hold": ("✗", "red"),
    "fails": ("✗", "red"),
    "mixed": ("≠", "yellow"),
    "undecided": ("?", "yellow"),
    "not measured": ("–", "dim"),
}
QUIET_S = 15.0  # without a line, where there is no live table


def marked(verdict: str) -> Text:
    """Return a verdict with its mark and colour."""
    mark, style = MARKS[verdict]
    return Text.assemble((mark, style), f" {verdict}")


def duration(seconds: float) -> str:
    """Return a time to come, no more exactly than it is known.

    >>> duration(3.2), duration(94.3), duration(700.0), duration(9000.0)
    ('5 s', '95 s', '12 min', '2.5 h')
    """
    if seconds < 120:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_line(plan: "Plan", claims: int) -> str:
    """Return the plan in a line: "7 of 16 claims, 282 runs, 28,080 training steps: about 25 s on 2 cores"."""
    known = len(claim_names())
    measured = f"{claims} of {known} claims" if claims < known else _counted(claims, "claim")
    work = f"{measured}, {_counted(plan.runs, 'run')}, {_counted(plan.left, 'training step')}"
    if plan.steps > plan.left:
        work += f" (of {plan.steps:,}; the others are finished)"
    where = _counted(plan.jobs, "core") if plan.backend == "processes" else f"{plan.jobs} workers of {plan.backend}"
    return f"{work}: about {duration(plan.seconds)} on {where}"


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


class Screen:
    """Shows how a study goes on: a live row a claim on a terminal, elsewhere a line a claim as it is measured."""

    def __init__(self, console: Console, claims: "Sequence[Claim]") -> None:
        """Prepare a row for each claim."""
        self._console, self._count = console, len(claims)
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[says]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not self._live,
        )
        self._rows: dict[str, TaskID] = {c.id: self._progress.add_task(c.id, total=None, says="") for c in claims}
        self._all = self._progress.add_task("[bold]all runs[/]", total=None, says="")
        self._said = time.monotonic()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._planned = False
        self._missing = {c.id for c in claims}

    def __enter__(self) -> "Screen":
        self._progress.start()
        if not self._live:
            threading.Thread(target=self._speak_up, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._progress.stop()

    def planned(self, plan: "Plan") -> None:
        """Set the length of each row; say the plan at first."""
        if not self._planned:
            self._planned = True
            self._say(Text(plan_line(plan, self._count)))
        for claim, steps in plan.claims.items():
            self._progress.update(self._rows[claim], total=steps)
        self._progress.update(self._all, total=plan.steps)

    def worked(self, claims: Sequence[str], steps: int) -> None:
        """Advance the rows that share a finished piece of work."""
        for claim in claims:
            self._progress.advance(self._rows[claim], steps)
        self._progress.advance(self._all, steps)

    def measured(self, claim: "Claim", finding: "Finding") -> None:
        """Show a verdict as soon as it is known."""
        verdict = finding.verdict()
        mark, style = MARKS[verdict]
        self._progress.update(self._rows[claim.id], total=1, completed=1, says=f"[{style}]{mark}[/] {verdict}")
        self._missing.discard(claim.id)
        if not self._missing:  # the bar pulses, as nobody knows how long that takes
            self._progress.update(self._all, description="[bold]writing the report[/]", total=None)
        if not self._live:
            sentence = Text(" " + printable(finding.summary or finding.skipped))
            self._say(Text.assemble(marked(verdict), ": ", (claim.id, "bold"), ".", sentence))

    def _say(self, line: Text) -> None:
        with self._lock:
            self._said = time.monotonic()
            self._console.print(line, highlight=False, soft_wrap=True)

    def _speak_up(self) -> None:
        """Say how far the study is, where nothing else has been said for a while."""
        while not self._over.wait(1.0):
            task = self._progress.tasks[-1]
            if task.total and time.monotonic() - self._said >= QUIET_S:
                left = f", about {duration(task.time_remaining)} left" if task.time_remaining else ""
                self._say(Text(f"{task.percentage:.0f} % of the runs{left}", "dim"))


def verdicts(results: "Results") -> Group:
    """Return the verdicts, the answer, what is worth knowing of the data, and where the report lies."""
    content = results.reproducible
    title = Text(f"Batch normalization on {printable(content['data']['name'])}")
    table = Table(title=title, title_justify="left", expand=False)
    for column in ("claim", "verdict", "what was found: medians with their 95 % intervals, and what is needed"):
        table.add_column(column, overflow="fold")
    for claim in content["claims"]:
        table.add_row(claim["id"], marked(claim["verdict"]), _decisive(claim), end_section=True)
    sentences = [Text(f"• {printable(sentence)}") for sentence in results.answer]
    unsaid = [] if content["data"]["profile"] else content["data"]["notes"]  # those of a table came with its profile
    notes = [Text(f"  {printable(note)}", "dim") for note in unsaid]
    page, seconds = printable(str(results.folder / "index.html")), results.timings["seconds"]
    report = Text.assemble("\nReport: ", (page, "bold"), f" ({seconds:.0f} s)", overflow="fold")
    return Group(table, *sentences, *notes, report)


def claims_table(claims: "Sequence[dict[str, Any]]") -> Group:
    """Return the claims: how --claims names them, what they say, what they cost."""
    table = Table(title="Claims about batch normalization, for --claims", title_justify="left")
    table.add_column("id", no_wrap=True)
    table.add_column("statement", overflow="fold")
    table.add_column("training steps", justify="right", no_wrap=True)
    for claim in claims:
        table.add_row(claim["id"], Text(claim["statement"]), f"{claim['steps']:,}")
    cost = "Training steps are those of the digits, before any are added. Claims share many of their runs."
    return Group(table, Text(cost, "dim"))


def _decisive(claim: dict[str, Any]) -> Group:
    """Return the finding in a sentence, and a line for each effect that decides."""
    lines = [Text(printable(claim["summary"] or claim["skipped"]))]
    lines += [_told(effect) for effect in claim["effects"] if effect["decides"]]
    return Group(*lines)


def _told(effect: dict[str, Any]) -> Text:
    from batchnorm.study.wording import needed

    mark, style = MARKS[effect["verdict"]]
    part = f"{effect['part']}: " if effect["part"] else ""
    around = f" ({effect['range']})" if effect["range"] else ""
    return Text.assemble(
        (mark, style), f" {part}{effect['name']}: ", (effect["headline"], "bold"), f"{around}, needed {needed(effect)}"
    )
