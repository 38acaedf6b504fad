"""A study on the terminal: a live table while it runs, the verdicts at the end."""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from batchnorm.study.findings import Claim, Finding
from batchnorm.study.runner import Results

MARKS = {"holds": "[green]✓[/]", "does not hold": "[red]✗[/]", "undecided": "[yellow]?[/]", "not measured": "[dim]–[/]"}


def number(value: float | None, unit: str = "") -> str:
    """Return a number to three significant digits with its unit, a dash for none.

    >>> number(17.6543, "×"), number(None)
    ('17.7×', '–')
    """
    return "–" if value is None or math.isnan(value) else f"{value:.3g}{unit}"


def interval(effect: dict[str, Any]) -> str:
    """Return median and 95 % interval of an effect as it stands in results.json."""
    median = number(effect["value"], effect["unit"])
    return median if median == "–" else f"{median} ({number(effect['low'])} to {number(effect['high'])})"


def told(effect: dict[str, Any]) -> str:
    """Return an effect on one line, in rich's markup: name, median and interval, and what the claim needs."""
    needed = ("> " if effect["side"] == "above" else "< ") + number(effect["threshold"], effect["unit"])
    bound = ", a bound" if effect["bounded"] else ""
    return f"{escape(effect['name'])}: [bold]{interval(effect)}[/]{bound}, {needed}"


class Screen:
    """Shows how a study goes on: a row a claim, and the time left."""

    def __init__(self, console: Console, claims: Sequence[Claim]) -> None:
        """Prepare a row for each claim."""
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[says]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._rows: dict[str, TaskID] = {c.id: self._progress.add_task(c.id, total=None, says="") for c in claims}
        self._all = self._progress.add_task("[bold]all runs[/]", total=None, says="")

    def __enter__(self) -> "Screen":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def planned(self, steps: dict[str, int], total: int) -> None:
        """Set the length of each row."""
        for claim, amount in steps.items():
            self._progress.update(self._rows[claim], total=amount)
        self._progress.update(self._all, total=total)

    def worked(self, claims: Sequence[str], steps: int) -> None:
        """Advance the rows that share a finished piece of work."""
        for claim in claims:
            self._progress.advance(self._rows[claim], steps)
        self._progress.advance(self._all, steps)

    def measured(self, claim: Claim, finding: Finding) -> None:
        """Show a verdict as soon as it is known."""
        verdict = finding.verdict()
        self._progress.update(self._rows[claim.id], total=1, completed=1, says=f"{MARKS[verdict]} {verdict}")
        if not self._console.is_terminal:
            self._console.print(f"{claim.id}: {verdict}")


def show(results: Results, console: Console) -> None:
    """Print the data, the verdicts, the answer and where the report lies."""
    found = results.reproducible
    table = Table(title=f"Batch normalization on {escape(found['data']['name'])}", title_justify="left", expand=False)
    for column in ("claim", "verdict", "what decides: median (95 % interval), needed"):
        table.add_column(column, overflow="fold")
    for claim in found["claims"]:
        effects = [e for e in claim["effects"] if e["decides"]]
        lines = "\n".join(told(e) for e in effects) or escape(claim["skipped"])
        table.add_row(claim["id"], f"{MARKS[claim['verdict']]} {claim['verdict']}", lines, end_section=True)
    console.print(table)
    for sentence in found["answer"]:
        console.print(f"• {escape(sentence)}", highlight=False)
    for note in found["data"]["notes"]:
        console.print(f"[dim]  {escape(note)}[/]", highlight=False)
    seconds = results.timings["seconds"]
    console.print(f"\nReport: [bold]{escape(str(results.folder / 'index.html'))}[/] ({seconds:.0f} s)", highlight=False)
