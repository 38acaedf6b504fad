"""Whether a file holds what `batchnorm bench --out` has written: it may have been changed, cut or written by others."""

import json
import math
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from batchnorm.bench.cases import BYTES, LAYOUTS, OPS
from batchnorm.bench.memory import MODES
from batchnorm.errors import ArgumentError

SCHEMA = 2
MOST_BYTES = 2**26  # of a file: a run of everything writes less than a megabyte
MOST = 1e15  # seconds, bytes a second, times: more is no measurement
LARGEST = 2**40  # values of an array
SAID = 80  # characters of a value in a message
WAY_OUT = "name a .json that `batchnorm bench --out` has written"


class Rule(NamedTuple):
    """What a value must be: a test, and the same in words."""

    holds: Callable[[Any], bool]
    words: str


def _number(value: Any, least: float = 0.0) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= MOST


def _measured(value: Any) -> bool:
    return _number(value) and value > 0


def _count(value: Any) -> bool:
    return isinstance(value, int) and _number(value, 1)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _versions(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) in LAYOUTS and all(map(_count, value)) and math.prod(value) <= LARGEST


def _kind(kind: type) -> Callable[[Any], bool]:
    def is_one(value: Any) -> bool:
        return isinstance(value, kind)

    return is_one


def _of(known: Collection[str]) -> Rule:
    def is_known(value: Any) -> bool:
        return isinstance(value, str) and value in known

    return Rule(is_known, " or ".join(known))


def _modes(value: Any) -> bool:
    return _texts(value) and bool(value) and {*value} <= {*MODES}


def _or_none(holds: Callable[[Any], bool], words: str) -> Rule:
    def is_none_or_holds(value: Any) -> bool:
        return value is None or holds(value)

    return Rule(is_none_or_holds, f"{words} or null")


TEXT, TEXTS = Rule(_is_text, "a text"), Rule(_texts, "a list of texts")
COUNT, MAYBE_COUNT = Rule(_count, "a whole number ≥ 1"), _or_none(_count, "a whole number ≥ 1")
MEASURED, ERROR = _or_none(_measured, "a number > 0"), _or_none(_number, "a number ≥ 0")
MEMORY = Rule(_modes, f"a list of {' or '.join(MODES)}")
MAYBE_TEXT, OBJECT = _or_none(_is_text, "a text"), Rule(_kind(dict), "an object")
RUN = {
    "machine": OBJECT,
    "settings": OBJECT,
    "command": TEXTS,
    "notes": TEXTS,
    "finished": Rule(_kind(bool), "true or false"),
    "rows": Rule(_kind(list), "a list"),
}
MACHINE = {
    "cpu": TEXT,
    "cores": COUNT,
    "system": TEXT,
    "versions": Rule(_versions, "an object of names and versions"),
}
SETTINGS = {"threads": COUNT, "rounds": COUNT, "modes": MEMORY}
CASE = {"shape": Rule(_shape, "2 to 5 whole numbers ≥ 1"), "layout": TEXT, "dtype": _of(BYTES), "op": _of(OPS)}
ROW = {
    "memory": _of(MODES),
    "contender": TEXT,
    "failure": MAYBE_TEXT,
    "error": ERROR,
    "allowed": ERROR,
    "kernel": MAYBE_TEXT,
    "calls": MAYBE_COUNT,
    "samples": MAYBE_COUNT,
    **dict.fromkeys(("min_s", "median_s", "ratio", "bandwidth", "share"), MEASURED),
}


def content(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ArgumentError: if it cannot be read, or is far larger than any run.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ArgumentError(f"{path} is no file; {WAY_OUT}")
        if found.st_size > MOST_BYTES:
            raise ArgumentError(f"{path} has {found.st_size:,} bytes, more than any run; {WAY_OUT}")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; {WAY_OUT}") from None


def checked(text: str) -> dict[str, Any]:
    """Return the run that a text holds as plain data.

    Raises:
        ArgumentError: in one line that names the first thing that is wrong.
    """
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"these are no results of `batchnorm bench`: {error}; {WAY_OUT}") from None
    if not isinstance(found, dict):
        raise ArgumentError(f"these are no results of `batchnorm bench`, but {_short(found)}; {WAY_OUT}")
    if found.get("schema") != SCHEMA:
        raise ArgumentError(
            f"the results must have schema {SCHEMA}, got {_short(found.get('schema'))}: measure them anew"
        )
    _hold(found, RUN, "")
    _hold(found["machine"], MACHINE, "machine: ")
    _hold(found["settings"], SETTINGS, "settings: ")
    for number, row in enumerate(found["rows"]):
        where = f"rows[{number}]: "
        if not isinstance(row, dict):
            raise ArgumentError(f"the results are damaged: {where}must be an object, got {_short(row)}; {WAY_OUT}")
        _hold(row, {**CASE, **ROW}, where)
        _hold(row, {"layout": _of(LAYOUTS[len(row["shape"])])}, where)
    return found


def _hold(found: Mapping[str, Any], rules: Mapping[str, Rule], where: str) -> None:
    for name, rule in rules.items():
        if name not in found:
            raise ArgumentError(f"the results are damaged: {where}{name} is not there; {WAY_OUT}")
        if not rule.holds(found[name]):
            raise ArgumentError(
                f"the results are damaged: {where}{name} must be {rule.words}, got {_short(found[name])}; {WAY_OUT}"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= SAID else f"{text[:SAID]}…"


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
