"""What a column holds: an ordered list of rules, the first that fits decides."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from batchnorm.study.tables.dates import Form, dated_column, form
from batchnorm.study.tables.layout import plural, printable
from batchnorm.study.tables.numerals import (
    MISSING_NUMBERS,
    MISSING_TEXTS,
    MOST_WORDS,
    Spelling,
    plain_spelling,
    spelling,
)
from batchnorm.study.tables.recipe import LARGEST, Column, days, numbers, texts

MOST_CATEGORIES = 20
NEARLY_EMPTY = 0.95
NEARLY_UNIQUE = 0.9
DENSE = 0.9  # of the range of row numbers that is there: some rows may have been dropped
LONG_TEXT = 50  # characters, on average
SMALLEST_RANGE = 1e-100  # squares of smaller differences vanish even in float64

_ID_WORDS = frozenset({"id", "ids", "uuid", "guid", "uid", "pk", "rowid", "idx"})
_ID_ENDINGS = frozenset({"code", "number", "no", "nr", "num", "nummer", "key", "index", "row", "serial", "identifier"})
_OWNERS = (
    "customer|user|passenger|patient|subject|person|account|order|client|member|employee|record|item|product|sample"
)


@dataclass(frozen=True)
class Cells:
    """The cells of one column.

    Attributes:
        name: The column's.
        values: As they were read, in the rows that are kept.
        unnamed: Whether the file has no name for the column.
        comma: Whether other columns of the file have decimal commas.
    """

    name: str
    values: "pd.Series[Any]"
    unnamed: bool = False
    comma: bool = False

    @cached_property
    def typed(self) -> bool:
        """Whether the file itself says that these are numbers."""
        return types.is_numeric_dtype(self.values) and not types.is_bool_dtype(self.values)

    @cached_property
    def text(self) -> "pd.Series[Any]":
        """The cells as text without outer spaces, "" where one is missing."""
        return texts(self.values)

    @cached_property
    def plain(self) -> NDArray[np.float64]:
        """The cells that are numbers as `float` reads them, NaN in place of the others."""
        column = self.values if self.typed else pd.to_numeric(self.text, errors="coerce")
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return np.where(np.isinf(values), np.nan, values)

    @cached_property
    def blank(self) -> int:
        """How many cells are empty."""
        return int(self.values.isna().sum()) if self.typed else int((self.text == "").sum())

    @cached_property
    def words(self) -> dict[str, int]:
        """How often each text comes that is no plain number, empty cells left out."""
        others = np.isnan(self.plain)
        return {} if self.typed or not others.any() else _counts(self.text[others])

    @cached_property
    def counts(self) -> dict[str, int]:
        """How often each text comes, empty cells left out."""
        return _counts(self.text)

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Texts that stand for a missing cell, whatever the column holds."""
        return tuple(text for text in self.words if text.lower() in MISSING_TEXTS)

    @cached_property
    def gaps(self) -> int:
        """How many cells are missing, whatever the column holds."""
        return self.blank + sum(self.words[text] for text in self.missing)

    @property
    def present(self) -> int:
        """How many cells are not missing."""
        return len(self.values) - self.gaps

    @cached_property
    def distinct(self) -> int:
        """How many different cells there are, missing ones left out."""
        if self.number is not None:
            return len(np.unique(self.numbers[~np.isnan(self.numbers)]))
        return len(self.counts) - len(self.missing)

    @cached_property
    def spelling(self) -> Spelling | None:
        """How numbers are written here, None if the column does not hold mostly numbers."""
        if no_scalars(self.values):
            return None
        if self.typed or (not self.comma and not np.isnan(self.plain).all()):
            only_gaps = all(word.lower() in MISSING_NUMBERS for word in self.words)
            if only_gaps:
                return plain_spelling(self.words)
        return spelling(self.counts, self.comma)

    @cached_property
    def number(self) -> Column | None:
        """The column read as numbers, None if it does not hold mostly numbers."""
        if self.spelling is None:
            return None
        how = self.spelling
        column = Column(self.name, "number", parse=how.parse, replace=how.replace, missing=how.missing)
        values = self.numbers
        gaps = int(np.isnan(values).sum())
        fill = float(np.median(values[~np.isnan(values)])) if gaps < len(values) else 0.0
        return replace(column, gaps=gaps, fill=fill)

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The cells as numbers, NaN where one is missing or none."""
        how = self.spelling
        if how is None or not how.replace:  # numbers as float reads them need not be read twice
            return np.where(np.abs(self.plain) < LARGEST, self.plain, np.nan)
        return numbers(self.values, Column(self.name, "number", replace=how.replace, missing=how.missing))

    @cached_property
    def integers(self) -> NDArray[np.float64] | None:
        """The numbers that are not missing if all of them are whole, else None."""
        if self.number is None:
            return None
        values = self.numbers[~np.isnan(self.numbers)]
        return values if len(values) and bool((values == np.floor(values)).all()) else None


def _counts(text: "pd.Series[Any]") -> dict[str, int]:
    return {str(word): int(count) for word, count in text[text != ""].value_counts(sort=False).items()}


Rule = Callable[[Cells], Column | None]


def column_of(cells: Cells) -> Column:
    """Return what a column is read as: the first rule that fits decides."""
    return next(column for rule in RULES if (column := rule(cells)) is not None)


def dropped(cells: Cells, why: str) -> Column:
    """Return a column that is no feature."""
    return Column(cells.name, "dropped", why, gaps=cells.gaps)


def _no_scalars(cells: Cells) -> Column | None:
    what = no_scalars(cells.values)
    return Column(cells.name, "dropped", what, gaps=int(cells.values.isna().sum())) if what else None


def no_scalars(values: "pd.Series[Any]") -> str:
    """Return what the cells hold if that is neither number nor text nor date: "it holds lists"; else ""."""
    if types.is_complex_dtype(values) or types.is_timedelta64_dtype(values):
        return "it holds complex numbers" if types.is_complex_dtype(values) else "it holds durations"
    if values.dtype != object:
        return ""
    for kinds, words in (((list, tuple, set, np.ndarray), "lists"), ((dict,), "structs"), ((bytes,), "bytes")):
        if any(isinstance(value, kinds) for value in values.head(1000)):
            return f"it holds {words}"
    return ""


def _empty(cells: Cells) -> Column | None:
    if cells.gaps == len(cells.values):
        return dropped(cells, "every value is missing")
    share = cells.gaps / len(cells.values)
    return dropped(cells, f"{share:.1%} of its values are missing") if share > NEARLY_EMPTY else None


def _constant(cells: Cells) -> Column | None:
    return dropped(cells, "constant") if cells.distinct == 1 and not cells.gaps else None


def _date(cells: Cells) -> Column | None:
    how = date_form(cells)
    if how is None:
        return None
    column = dated_column(cells.values, cells.name, how)
    if how.kind == "dropped":
        return replace(column, gaps=cells.gaps)
    gaps = int(np.isnan(days(cells.values, column)).sum())
    if not column.parts:
        return dropped(cells, "constant, but for missing dates")
    filled = f", {gaps} missing filled with the median" if gaps else ""
    return replace(column, note=f"{column.note}: {', '.join(column.parts)}{filled}", gaps=gaps)


def date_form(cells: Cells) -> Form | None:
    """Return how the dates or times of a column are written, None if it holds none."""
    if types.is_datetime64_any_dtype(cells.values):
        return Form("date", "", "dates")
    if cells.integers is not None:
        dated = cells.integers[(cells.integers > 19000000) & (cells.integers < 21000000)]
        if len(dated) < len(cells.integers) or types.is_float_dtype(cells.values):
            return None
    elif cells.number is not None and cells.number.parse == "plain":
        return None
    return form({text: n for text, n in cells.counts.items() if text.lower() not in MISSING_NUMBERS})


def _row_numbers(cells: Cells) -> Column | None:
    values = cells.integers
    if values is None or cells.gaps or re.search("year|jahr", cells.name.lower()):
        return None
    dense = cells.distinct == len(values) and len(values) >= DENSE * (np.ptp(values) + 1)  # in order or shuffled
    return dropped(cells, "it numbers the rows") if dense or cells.unnamed else None


def _identifier(cells: Cells) -> Column | None:
    if cells.distinct <= MOST_CATEGORIES or (cells.integers is None and cells.number is not None):
        return None
    words = _words(cells.name)
    named = bool(_ID_WORDS & set(words)) or re.fullmatch(rf"({_OWNERS})id", "".join(words)) is not None
    numbered = cells.number is not None
    unique = cells.distinct >= NEARLY_UNIQUE * cells.present
    if unique and (named or (numbered and bool(words) and words[-1] in _ID_ENDINGS)):
        return dropped(cells, "an identifier, different in nearly every row")
    return dropped(cells, "an identifier: its numbers are names, not quantities") if named and numbered else None


def _words(name: str) -> list[str]:
    """Return the words of a name, in lower case: CustomerId, customer_id and "customer id" are alike."""
    apart = re.sub(r"([a-z\d])([A-Z])", r"\1 \2", name)
    return [word.lower() for word in re.split(r"[\W_]+", apart) if word]


def _group_numbers(cells: Cells) -> Column | None:
    """Read identifiers of few groups, shop_id 1 to 5, as categories."""
    if cells.integers is None or not _ID_WORDS & set(_words(cells.name)):
        return None
    return _categories(cells)


def _number(cells: Cells) -> Column | None:
    column = cells.number
    if column is None or cells.spelling is None:
        return None
    values = cells.numbers
    if column.gaps == len(values):
        return dropped(cells, f"every value is missing, infinite or beyond {LARGEST:g}")
    if not np.nanmax(values) - np.nanmin(values) > SMALLEST_RANGE:
        return dropped(cells, "constant, but for missing values" if column.gaps else "constant")
    return replace(column, note="; ".join(_number_notes(cells, column, cells.spelling)))


def _number_notes(cells: Cells, column: Column, spelled: Spelling) -> list[str]:
    """Return what is to be said about a column of numbers: how they are written, and which cells are none."""
    huge = column.gaps - cells.blank - sum(count for _, count in spelled.words)
    notes = [spelled.parse] if spelled.parse != "plain" else []
    words = ", ".join(f'"{printable(text, 20)}" ({count})' for text, count in spelled.words[:MOST_WORDS])
    more = f" and {plural(len(spelled.words) - MOST_WORDS, 'other')}" if len(spelled.words) > MOST_WORDS else ""
    if words:
        notes.append(f"read as missing: {words}{more}")
    if huge:
        notes.append(f"read as missing: {huge} infinite or beyond {LARGEST:g}")
    return [*notes, f"{column.gaps} missing filled with the median {column.fill:.6g}"] if column.gaps else notes


def _unique_text(cells: Cells) -> Column | None:
    if cells.distinct <= MOST_CATEGORIES:
        return None
    if cells.distinct >= NEARLY_UNIQUE * cells.present:
        return dropped(cells, "a different text in nearly every row")
    length = sum(len(text) * count for text, count in cells.counts.items()) / max(1, cells.present)
    return dropped(cells, "free text") if length > LONG_TEXT else None


def _categories(cells: Cells) -> Column:
    counts = {text: count for text, count in cells.counts.items() if text not in cells.missing}
    ranked = sorted(counts, key=lambda text: (-counts[text], text))
    common, rare = ranked[:MOST_CATEGORIES], ranked[MOST_CATEGORIES:]
    rest = [*(["other"] if rare else []), *(["missing"] if cells.gaps else [])]
    notes: list[str] = []
    if rare:
        share = sum(counts[text] for text in rare) / len(cells.values)
        notes.append(f'{plural(len(rare), "rarer one")}, {share:.0%} of the rows, as "other"')
    if cells.gaps:
        words = ", ".join(f'"{printable(text, 20)}" ({cells.counts[text]})' for text in cells.missing)
        notes.append(f"{cells.gaps} missing as a category" + (f": {words}" if words else ""))
    return Column(
        cells.name,
        "categories",
        "; ".join(notes),
        missing=cells.missing,
        gaps=cells.gaps,
        categories=tuple(dict.fromkeys([*sorted(common), *rest])),
    )


RULES: Sequence[Rule] = (
    _no_scalars,
    _empty,
    _constant,
    _date,
    _row_numbers,
    _identifier,
    _group_numbers,
    _number,
    _unique_text,
    _categories,
)
