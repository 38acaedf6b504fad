"""Python source from values: text of users' own, written so that it can be nothing but text."""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

WIDTH = 120  # columns of a line of generated code


def literal(value: object) -> str:
    r"""Return the source of a value, in double quotes where it is text.

    Raises:
        TypeError: for a value that no literal stands for.

    >>> print(literal("naïve"), literal('say "a"'), literal("a" + chr(10) + "#"), literal([("a", 1.5)]), literal(str))
    "naïve" 'say "a"' "a\n#" [("a", 1.5)] str
    """
    if isinstance(value, str):
        plain = repr(value)  # which escapes line ends, what is not printable and lone surrogates
        return plain if '"' in value else '"' + plain[1:-1] + '"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(literal, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    if value is str:
        return "str"
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return repr(int(value) if isinstance(value, int) else float(value))  # NumPy's float64 is a float too
    raise TypeError(f"no literal stands for {value!r}")


def columns_of(text: str) -> int:
    """Return how many columns a text takes on a screen: wide characters take two.

    >>> columns_of("naïve"), columns_of("数字")
    (5, 4)
    """
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def listed(opening: str, items: Sequence[str], closing: str, indent: int) -> str:
    """Return a call, list or dict in one line if it fits, else with as many items a line as fit.

    Args:
        opening: What comes before the items, such as `name = [`.
        items: The source of each.
        closing: What comes after, such as `]`.
        indent: Spaces before the first line.
    """
    margin = " " * indent
    whole = margin + opening + ", ".join(items) + closing
    if columns_of(whole) <= WIDTH and "\n" not in whole:
        return whole
    return "\n".join([margin + opening, *packed(items, indent + 4), margin + closing])


def packed(items: Iterable[str], indent: int) -> list[str]:
    """Return lines with as many items, each followed by a comma, as fit."""
    lines: list[str] = []
    for item in items:
        longer = f"{lines[-1]} {item}," if lines else ""
        if lines and "\n" not in longer and columns_of(longer) <= WIDTH:
            lines[-1] = longer
        else:
            lines.append(" " * indent + item.lstrip() + ",")
    return lines


def phrase(text: str, longest: int = 60) -> str:
    """Return text for a comment or a docstring: one line, printable, without double quotes or backslashes.

    >>> phrase("a" + 3 * chr(34) + "b" + chr(92))
    "a'''b/"
    """
    letters = (letter if letter.isprintable() else " " for letter in text.replace('"', "'").replace("\\", "/"))
    line = " ".join("".join(letters).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
