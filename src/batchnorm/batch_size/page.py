"""The advice on one page, for a terminal or as text."""

import io
import math
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from batchnorm.batch_size.advice import Advice, Limit
from batchnorm.batch_size.decision import COMPUTE_SHARE, fastest
from batchnorm.batch_size.remarks import HONEST, number

WIDTH = 100
AGREES = 0.05  # relative: as far as B* on a grid may lie from the formula
INSIDE = "  "  # begins a line that belongs to the one above
TITLES = {
    "memory": "memory",
    "throughput": "throughput (Bhalf)",
    "gradient_noise": "gradient noise (Bcrit)",
    "statistics_noise": "statistics noise (m_min)",
}
DECIDES = {
    "memory": "memory: the time to the target would fall further with a larger batch, which does not fit",
    "throughput": "throughput: a larger batch would save steps still, but costs in proportion, the machine being busy",
    "gradient_noise": "gradient noise: a larger batch would cost little more a step still, but saves hardly any steps",
    "statistics_noise": "statistics noise: smaller batches would do, but fewer than m_min, or 16, are too few to "
    "normalise by",
    "group": "the samples that are normalised together: smaller batches would do, but for the number that you ask for, "
    "or 16",
    "budget": "what there was time to try: the limit that would decide was not measured",
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
    low, high = advice.between
    between = f" ({low:,} to {high:,})" if low < high else ""
    sure = f"confidence [bold {colour}]{advice.confidence}[/]"
    head = Text.from_markup(f"[bold]Batch size B = {advice.batch_size:,}[/]{between}{group}   {sure}")
    if advice.doubts:
        head.append(f": {advice.doubts[0]}")
    about = ", ".join(escape(f"{name} {value}") for name, value in advice.measured_on.items())
    table = Table(show_edge=False, pad_edge=False, expand=False)
    table.add_column("limit", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("interval", justify="right", no_wrap=True)
    table.add_column("what was measured", overflow="fold")
    for name, limit in advice.limits.items():
        table.add_row(*_row(name, limit, name == advice.binding))
    told = Table.grid(padding=(0, 1, 0, 0))
    for line in (*_answer(advice), *advice.remedies, *advice.notes):
        told.add_row("" if line.startswith(INSIDE) else "•", Text(line))
    for line in HONEST:
        told.add_row("", Text(line), style="dim")
    measured = [Text.from_markup(f"measured on: {about}", style="dim")] if about else []
    return Group(head, *measured, Text(), table, Text(), told)


def _answer(advice: Advice) -> list[str]:
    return [
        f"decided by {DECIDES[advice.binding]}",
        *_time(advice),
        *advice.doubts[1:],
        advice.because,
        *_to_do(advice),
        *_measured(advice),
    ]


def _time(advice: Advice) -> list[str]:
    low, high = map(number, advice.plateau)
    if advice.objective == "compute":
        share = COMPUTE_SHARE * (advice.limits["gradient_noise"].value or math.nan)
        told = f"for little compute B ≤ {COMPUTE_SHARE:g}·Bcrit = {number(share)}"
        return [told + (", which is smaller than any size that will do" if advice.batch_size > share else "")]
    tried = max(advice.predicted, default=math.inf)
    if advice.best > tried:
        return [f"the predicted time still falls at the largest size that was tried, {tried:,}"]
    critical, half = (advice.limits[name].value for name in ("gradient_noise", "throughput"))
    formula = fastest(critical, half) if critical and half else math.nan
    exact = "√(Bcrit·Bhalf) = " if abs(formula / advice.best - 1.0) < AGREES else ""
    return [f"predicted time is least at {exact}{number(advice.best)}, and within 5 % of that from {low} to {high}"]


def _to_do(advice: Advice) -> list[str]:
    """Return what changes with the batch size."""
    told: list[str] = []
    if advice.learning_rate is not None:
        told.append(f"learning rate for plain SGD: about {advice.learning_rate:.2g}, by a short search")
    changed = advice.batch_size != advice.current
    if changed and advice.learning_rate_factor is not None:
        told.append(
            f"if yours was good for batches of {advice.current}: learning rate × {advice.learning_rate_factor:.3g} for "
            f"{advice.batch_size}"
        )
    for old, new in advice.momentum.items():
        own = advice.batch_size // advice.processes
        since = f"B/α = {own / new:,.0f} samples" if new else "all samples"
        was = f" instead of {old:g}, so that they forget as many samples ago," if changed else ""
        told.append(f"momentum of the running statistics α = {new:.2g}{was} looks back over {since}")
    return told


def _measured(advice: Advice) -> list[str]:
    if not advice.measured:
        return []
    return [
        "measured time to the target ÷ least, beside the predicted:",
        *(
            f"{INSIDE}B = {size}: {'never arrived' if math.isinf(ratio) else f'{ratio:.2f}'}"
            + (f" (predicted {advice.predicted[size]:.2f})" if size in advice.predicted else "")
            for size, ratio in advice.measured.items()
        ),
    ]


def text(advice: Advice) -> str:
    """Return the page as plain text."""
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None, force_terminal=False).print(page(advice), highlight=False)
    return out.getvalue().rstrip("\n")
