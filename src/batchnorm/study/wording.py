"""How the report says numbers, durations, settings and samples."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchnorm.study.findings import counted
from batchnorm.study.pictures import power_of_ten

MISSING = "–"
MOST_NAMES = 20
NETWORKS = {"relu": "ReLU network", "sigmoid": "sigmoid network", "own": "your model"}


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


def needed(effect: Mapping[str, Any]) -> str:
    """Return what the claim needs of an effect.

    >>> needed({"side": "above", "threshold": 1.5, "unit": "×"})
    '> 1.5×'
    >>> needed({"side": "below", "threshold": 1, "unit": " decades"})
    '< 1 decade'
    """
    sign = ">" if effect["side"] == "above" else "<"
    return f"{sign} {counted(number(effect['threshold']), effect['unit'])}"


def sample(pair: Sequence[float | None], effect: Mapping[str, Any]) -> str:
    """Return what is known of one seed's sample, the least and the most that it can be.

    >>> steps = {"name": "steps to the goal, without ÷ with", "unit": "×"}
    >>> [sample(pair, steps) for pair in ([4.6, 4.6], [42, None], [0, 0.1], [0, None], [2, 3])]
    ['4.6', '≥ 42', '≤ 0.1', 'neither arrived', '2 to 3']
    >>> sample([None, None], {"name": "best test score, with − without", "unit": ""})
    'not known'
    """
    least, most = pair
    if least is None or (effect["unit"] == "×" and least == 0 and most != 0):
        if most is not None:
            return f"≤ {number(most)}"
        return "neither arrived" if effect["name"].startswith(("steps", "seconds")) else "not known"
    if most is None:
        return f"≥ {number(least)}"
    return number(least) if least == most else f"{number(least)} to {number(most)}"


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


def listed(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """Return names in a row, not more than anyone reads.

    >>> listed(["a", "b", "c", "d"], most=3)
    'a, b, c and 1 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")
