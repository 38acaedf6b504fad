"""The page that a study leaves behind: one file, no network, no script, every name from the user's data escaped."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from batchnorm.study.pictures import power_of_ten

TEMPLATES = Path(__file__).with_name("templates")
MISSING = "–"
MOST_NAMES = 20
# Text, symbol and class: no verdict is told by its colour alone.
SYMBOLS = {"holds": "✓", "does not hold": "✗", "undecided": "?", "not measured": MISSING}


def number(value: float | None) -> str:
    """Return a number as people read it, to three significant digits; a dash for none.

    >>> [number(v) for v in (8.1234, -0.25, 0.95, 123.4, 1797, 2.5e6, 0.00012, 0, None, float("nan"))]
    ['8.12', '−0.25', '0.95', '123', '1,797', '2.5·10⁶', '1.2·10⁻⁴', '0', '–', '–']
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return power_of_ten(value)
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


def median(effect: Mapping[str, Any]) -> str:
    """Return an effect's median with its unit."""
    return number(effect["value"]) + ("" if effect["value"] is None else effect["unit"])


def interval(effect: Mapping[str, Any]) -> str:
    """Return an effect's interval with its unit; a dash where too few seeds gave a value."""
    if effect["low"] is None or effect["high"] is None:
        return MISSING
    return f"{number(effect['low'])} to {number(effect['high'])}{effect['unit']}"


def needed(effect: Mapping[str, Any]) -> str:
    """Return what the claim needs of an effect.

    >>> needed({"side": "above", "threshold": 1.5, "unit": "×"})
    '> 1.5×'
    """
    return f"{'>' if effect['side'] == 'above' else '<'} {number(effect['threshold'])}{effect['unit']}"


def duration(seconds: float | None) -> str:
    """Return a duration.

    >>> [duration(s) for s in (0.00123, 8.25, 87.2, 3725)]
    ['1.23 ms', '8.25 s', '87 s', '62 min']
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 1:
        return f"{number(seconds * 1000)} ms"
    if seconds < 180:
        return f"{number(round(seconds) if seconds >= 10 else seconds)} s"
    return f"{seconds / 60:.0f} min"


def plainly(value: Any) -> str:
    """Return a setting in words.

    >>> plainly(True), plainly(None), plainly(["speed", "placement"]), plainly(1000), plainly("sgd")
    ('yes', '–', 'speed, placement', '1,000', 'sgd')
    """
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else number(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(plainly, value)) or MISSING
    return str(value)


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each value of nested mappings with the names that lead to it.

    >>> list(leaves({"batch_size": 60, "grid": {"low": 0.1}}))
    [('batch size', 60), ('grid · low', 0.1)]
    """
    for name, value in tree.items():
        here = (*path, str(name).replace("_", " "))
        if isinstance(value, Mapping):
            yield from leaves(value, here)
        else:
            yield " · ".join(here), value


def some(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """Return names in a row, not more than anyone reads.

    >>> some(["a", "b", "c", "d"], most=3)
    'a, b, c and 1 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: tuple[Any, ...] = (number, median, interval, needed, duration, plainly, leaves, some)
    made.filters.update({function.__name__: function for function in filters})
    return made


def render(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the report as one HTML page.

    Args:
        results: What `results.json` holds: plain data, None where there is no number.
        pictures: SVG of `pictures.inline` by claim id; a claim without one is shown without.
    """
    drawn = {claim: Markup(svg) for claim, svg in pictures.items()}
    return _environment().get_template("report.html.j2").render(results=results, pictures=drawn, symbols=SYMBOLS)


def write(path: Path, results: Mapping[str, Any], pictures: Mapping[str, str]) -> None:
    """Write the report whole or not at all: to a file beside it, then in its place."""
    page = render(results, pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(page, encoding="utf-8", newline="\n")
    draft.replace(path)
