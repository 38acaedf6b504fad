"""Dates and times: how those of a column are written, and which features they become."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchnorm.study.tables.recipe import DAYS_PER_YEAR, Column, days

MOSTLY = 0.95  # the share of cells that have to be dates of one form
SAMPLE = 200
TRIED = 10  # texts, one of which must have a form for the form to be tried on all

_TIME = r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?( ?[AaPp][Mm])?"
_LIKE = re.compile(
    rf"{_TIME}|(19|20)\d{{6}}|\d{{4}}[-/]\d{{1,2}}|\d{{1,2}}/\d{{4}}|[A-Za-z]{{3,9}}[- ]\d{{4}}"
    r"|((\w{3,9}, )?(\d{1,4}[-/. ](\d{1,2}|[A-Za-z]{3,9})[-/., ] ?\d{1,4}|[A-Za-z]{3,9} \d{1,2},? \d{4}))"
    rf"([T ,]+{_TIME})?( ?(Z|UTC|GMT|[+-]\d\d:?\d\d))?"
)
_ORDERS = {  # each with what it is in words; the first that reads most of a column is taken
    "year first": ("%Y/%m/%d", "%Y.%m.%d", "%Y-%m-%d", "%Y %m %d", "%Y%m%d", "%Y-%m", "%Y/%m"),
    "month first": ("%m/%d/%Y", "%m/%d/%y", "%m-%d-%Y", "%m-%d-%y", "%m.%d.%Y", "%m.%d.%y", "%m %d %Y", "%m/%Y"),
    "day first": ("%d/%m/%Y", "%d/%m/%y", "%d-%m-%Y", "%d-%m-%y", "%d.%m.%Y", "%d.%m.%y", "%d %m %Y"),
    "month by name": (
        "%d %b %Y", "%d-%b-%Y", "%d/%b/%Y", "%d-%b-%y", "%d %b %y", "%b %d, %Y", "%b %d %Y", "%b %Y", "%b-%Y",
        "%d %B %Y", "%d-%B-%Y", "%B %d, %Y", "%B %d %Y", "%B %Y", "%a, %d %b %Y", "%A, %B %d, %Y",
    ),
}  # fmt: skip


class Form(NamedTuple):
    """How the dates or times of a column are written: for `pandas.to_datetime`, and in words."""

    kind: Literal["date", "time", "dropped"]
    format: str
    words: str


def form(counts: Mapping[str, int]) -> Form | None:
    """Return how the dates or times of a column are written, None if it holds none; "dropped" for a mixture."""
    total = sum(counts.values())
    like = {text: count for text, count in counts.items() if _LIKE.fullmatch(text)}
    if not like or sum(like.values()) < MOSTLY * total:
        return None
    texts = list(like)
    weights = np.array([like[text] for text in texts], dtype=float) / total
    readings = {
        candidate: float(weights[_read(texts, candidate.format)].sum())
        for candidate in _candidates(texts)
        if candidate.format == "ISO8601" or any(_strict(text, candidate.format) for text in texts[:TRIED])
    }
    good = [candidate for candidate, share in readings.items() if share >= MOSTLY]
    if good:
        return _settled(good, texts)
    mixed = sum(sorted(readings.values())[-2:]) >= MOSTLY
    return Form("dropped", "", "the dates are written in more than one form") if mixed else None


def moments(texts: Sequence[str], format: str) -> "pd.Series[Any]":
    """Return texts as dates, NaT where one has another form."""
    return pd.to_datetime(pd.Series(texts, dtype=object), format=format, errors="coerce", utc=True)


def _read(texts: Sequence[str], format: str) -> NDArray[np.bool_]:
    read = moments(texts, format)
    return (read.notna() & read.dt.year.between(1000, 2200)).to_numpy()


def _strict(text: str, format: str) -> bool:
    try:
        datetime.strptime(text, format)
    except ValueError:
        return False
    return True


def _candidates(texts: Sequence[str]) -> list[Form]:
    """Return the forms that may fit, by the times and zones of the first texts."""
    sample = texts[:SAMPLE]
    clocks = Counter(clock for text in sample if (clock := _clock(text)))
    clock = clocks.most_common(1)[0][0] if clocks.total() * 2 > len(sample) else ""
    if clock and all(re.fullmatch(_TIME, text) for text in sample):
        return [Form("time", clock, "times of day")]
    if sum(bool(re.match(r"\d{4}-\d\d-\d\d", text)) for text in sample) * 2 > len(sample):
        return [Form("date", "ISO8601", "year first")]
    between = next((mark for mark in ("T", ", ", " ") if re.search(rf"\d{mark}\d+:", sample[0])), " ")
    zone = next((zone for zone in ("Z", " UTC", " GMT", " %z", "%z") if _zoned(sample[0], zone)), "")
    end = between + clock + zone if clock else ""
    return [Form("date", date + end, order) for order, dates in _ORDERS.items() for date in dates]


def _clock(text: str) -> str:
    """Return how the time in a text is written, "" if there is none."""
    match = re.search(_TIME, text)
    if match is None:
        return ""
    seconds = ("", ":%S", ":%S.%f")[bool(match[1]) + bool(match[2])]
    return f"%H:%M{seconds}" if match[3] is None else f"%I:%M{seconds}{' ' * match[3].startswith(' ')}%p"


def _zoned(text: str, zone: str) -> bool:
    pattern = zone.replace("%z", r"[+-]\d\d:?\d\d")
    return ":" in text and re.search(rf":\d\d(\.\d+)?{pattern}$", text) is not None


def _settled(good: Sequence[Form], texts: Sequence[str]) -> Form:
    """Choose among the forms that read a column; where day and month can be swapped throughout, say so."""
    first = good[0]
    swapped = next((other for other in good if first.words == "month first" and other.words == "day first"), None)
    if swapped is None:
        return first
    by_month, by_day = (moments(texts, choice.format).dt.day.nunique() for choice in (first, swapped))
    if by_month == 1 or by_day == 1:  # the same day of every month
        return first if by_month == 1 else swapped
    chosen = first if "/" in first.format else swapped
    return chosen._replace(words=f"{chosen.words} (day and month can be swapped in every cell)")


def dated_column(column: "pd.Series[Any]", name: str, how: Form) -> Column:
    """Return the column with the features that its dates or times become."""
    read = Column(name, how.kind, format=how.format)
    if how.kind == "dropped":
        return Column(name, "dropped", how.words)
    values = days(column, read)
    values = values[~np.isnan(values)]
    fill = float(np.median(values % 1 if how.kind == "time" else values)) if len(values) else 0.0
    parts = ("hour",) if how.kind == "time" else _parts(values, how.format)
    return Column(name, how.kind, how.words, format=how.format, fill=fill, parts=parts)


def _parts(values: NDArray[np.float64], format: str) -> tuple[str, ...]:
    """Return those features of dates that vary; the season only where the dates span a good part of a year."""
    whole = np.floor(values)
    varies = {
        "year": bool(np.ptp(values) > 0),
        "season": bool(np.ptp(values) > DAYS_PER_YEAR / 4),
        "weekday": len(np.unique(whole % 7)) > 1 and (format in ("", "ISO8601") or "%d" in format),
        "hour": bool(np.ptp(values - whole) > 0),
    }
    return tuple(part for part, does in varies.items() if does)
