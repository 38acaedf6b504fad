"""The advice on one page, for a terminal or as text."""

import io
import math
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from batchnorm.batch_size.advice import Advice, Limit
from batchnorm.batch_size.remarks import HONEST, number

WIDTH = 100
TITLES = {
    "memory": "memory",
    "throughput": "throughput (Bhalf)",
    "gradient_noise": "gradient noise (Bcrit)",
    "statistics_noise": "statistics noise (m_min)",
}
DECIDES = {
    "memory": "memory: the time to the target would fall further with a larger batch, which does not fit",
    "throughput": "throughput: above Bhalf the machine is busy and a larger batch costs in proportion",
    "gradient_noise": "gradient noise: above Bcrit a larger batch saves hardly any steps",
    "statistics_noise": "statistics noise: smaller batches would do, but fewer than m_min, or 16, are too few to "
    "normalise by",
    "data": "the data: a larger batch would be faster, but these are all the rows, or all there was time to try",
}
COLOURS = {"high": "green", "medium": "yellow", "low": "red"}


def _row(name: str, limit: Limit, decides: bool) -> tuple[str, str, str, str]:
    value = ("≥ " if limit.is_bound else "") + number(limit.value)
    known = limit.low is not None and not limit.is_bound
    between = f"{number(limit.low)} – {number(limit.high or math.inf)}" if known else ""
    title = TITLES[name]
    return (f"[bold]{title} ◂[/]" if decides else title), value, between, escape(limit.note)


def page(advice: Advice) -> Any:
    """Return the page as something that rich prints."""
    colour = COLOURS[advice.confidence]
    normalizes = advice.limits["statistics_noise"].value is not None
    group = f", normalised in groups of [bold]m = {advice.group_size:,}[/]" if normalizes else ""
    head = Text.from_markup(
        f"[bold]Batch size B = {advice.batch_size:,}[/]{group}   confidence [bold {colour}]{advice.confidence}[/]"
    )
    table = Table(show_edge=False, pad_edge=False, expand=False)
    table.add_column("limit", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("interval", justify="right", no_wrap=True)
    table.add_column("what was measured", overflow="fold")
    for name, limit in advice.limits.items():
        table.add_row(*_row(name, limit, name == advice.binding))
    told = Table.grid(padding=(0, 1, 0, 0))
    for line in (*_answer(advice), *advice.remedies, *advice.notes):
        told.add_row("•", Text(line))
    for line in HONEST:
        told.add_row("", Text(line), style="dim")
    return Group(head, Text(), table, Text(), told)


def _answer(advice: Advice) -> list[str]:
    low, high = advice.plateau
    lines = [
        f"decided by {DECIDES[advice.binding]}",
        f"predicted time is least at B* = √(Bcrit·Bhalf) ≈ {number(advice.best)}, and within 5 % of that from "
        f"{number(low)} to {number(high)}",
        advice.because,
    ]
    if advice.objective == "compute":
        lines[1] = f"for little compute B ≤ 0.2·Bcrit; the time would be least at {number(advice.best)}"
    if advice.batch_size != advice.current:
        lines.append(
            f"going from batches of {advice.current} to {advice.batch_size}: learning rate × "
            f"{advice.learning_rate_factor:.3g}"
            + "".join(f", momentum of the running statistics {a:g} → {b:.2g}" for a, b in advice.momentum.items())
        )
    if advice.measured:
        lines.append("measured time to the target ÷ least, beside the predicted:")
        lines += [
            f"  B = {size}: {'–' if ratio == float('inf') else f'{ratio:.2f}'}"
            + (f" (predicted {advice.predicted[size]:.2f})" if size in advice.predicted else "")
            for size, ratio in advice.measured.items()
        ]
    return lines


def text(advice: Advice) -> str:
    """Return the page as plain text."""
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None, force_terminal=False).print(page(advice), highlight=False)
    return out.getvalue().rstrip("\n")
