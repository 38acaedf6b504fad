"""What single columns are read as: numbers in many spellings, dates in many forms, identifiers, categories, targets."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchnorm.study.tables.dates import form
from batchnorm.study.tables.numerals import spelling
from batchnorm.study.tables.recipe import Column, numbers
from table_files import ROWS, A, Y, column, columns, csv, dataset_of, profiled

NAN = float("nan")
SPELLINGS = {
    "plain": (["1", "2.5", "-3e5", ".5", "+4"], "plain", [1, 2.5, -3e5, 0.5, 4]),
    "words": (["1", "2", "3", "4", "5", "six", "?", "inf"], "plain", [1, 2, 3, 4, 5, NAN, NAN, NAN]),
    "percent": (["59.4%", "5 %", "7%", "-"], "percent", [59.4, 5, 7, NAN]),
    "thousands": (["51,191", "1,234,567.5", "3"], "thousands separators", [51191, 1234567.5, 3]),
    "decimal comma": (["2,54", "-0,86", "1.234,5"], "thousands separators, decimal comma", [2.54, -0.86, 1234.5]),
    "leading zero": (["0,123", "0,999", "1,123"], "decimal comma", [0.123, 0.999, 1.123]),
    "spaces": (["1 234", "12 345 678,5", "7"], "thousands separators, decimal comma", [1234, 12345678.5, 7]),
    "Swiss": (["1'234.5", "7'000", "1"], "thousands separators", [1234.5, 7000, 1]),
    "dollars": (["$1,234.50", "($5)", "-$3"], "currency, thousands separators", [1234.5, -5, -3]),
    "euros": (["1,50 €", "€ 4", "12 €"], "currency, decimal comma", [1.5, 4, 12]),
    "codes": (["5 EUR", "3 EUR"], "currency", [5, 3]),
    "unit": (["12 kg", "5kg", "3 kg"], "unit kg", [12, 5, 3]),
    "plural": (["3 years", "1 year", "10 years"], "unit years", [3, 1, 10]),
    "powers of ten": (["300k", "1.5 M", "950"], "powers of ten (M, k)", [3e5, 1.5e6, 950]),
    "minus sign": (["−5", "3", "4"], "plain", [-5, 3, 4]),
    "malformed": (["1,2", *["1,234.5"] * 9], "thousands separators", [NAN, *[1234.5] * 9]),
    "other unit": (["9 lb", *["2 kg"] * 9], "unit kg", [NAN, *[2] * 9]),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_spellings_of_numbers(case: str) -> None:
    cells, parse, values = SPELLINGS[case]
    how = spelling(Counter(cells))
    assert how is not None
    assert how.parse == parse
    read = numbers(pd.Series(cells), Column("a", "number", replace=how.replace, missing=how.missing))
    assert np.array_equal(read, np.array(values, dtype=float), equal_nan=True)


@pytest.mark.parametrize(
    "cells", [["1.2.3", "1.2.4"], ["12A", "13B", "1C"], ["06:53"], ["1st", "2nd"], ["a", "1"], ["?"]]
)
def test_no_numbers(cells: list[str]) -> None:
    assert spelling(Counter(cells)) is None


def test_the_other_columns_decide_what_a_comma_or_a_point_is(tmp_path: Path) -> None:
    ambiguous = [f"{1 + i % 9},{100 + i}" for i in range(ROWS)]
    commas = [str(v).replace(".", ",") for v in A]
    alone = profiled(tmp_path, csv(columns(a=ambiguous)))
    assert column(alone, "a").parse == "thousands separators"
    beside = profiled(tmp_path, csv(columns(a=ambiguous, b=commas), ";"))
    assert column(beside, "a").parse == "decimal comma"
    points = profiled(tmp_path, csv(columns(a=[cell.replace(",", ".") for cell in ambiguous], b=commas), ";"))
    assert column(points, "a").parse == "thousands separators"


DAYS = pd.date_range("2024-01-01", "2025-03-01", periods=100)
FORMS = {
    "%Y-%m-%d": ("ISO8601", "year first"),
    "%Y-%m-%dT%H:%M:%SZ": ("ISO8601", "year first"),
    "%Y-%m-%d %H:%M:%S+02:00": ("ISO8601", "year first"),
    "%Y%m%d": ("%Y%m%d", "year first"),
    "%Y/%m/%d %H:%M:%S.%f": ("%Y/%m/%d %H:%M:%S.%f", "year first"),
    "%m/%d/%Y": ("%m/%d/%Y", "month first"),
    "%d/%m/%Y": ("%d/%m/%Y", "day first"),
    "%d.%m.%y": ("%d.%m.%y", "day first"),
    "%d/%m/%Y %H:%M": ("%d/%m/%Y %H:%M", "day first"),
    "%m/%d/%Y %I:%M %p": ("%m/%d/%Y %I:%M %p", "month first"),
    "%d-%b-%y": ("%d-%b-%y", "month by name"),
    "%B %d, %Y": ("%B %d, %Y", "month by name"),
    "%Y-%m": ("%Y-%m", "year first"),
    "%H:%M": ("%H:%M", "times of day"),
    "%I:%M %p": ("%I:%M %p", "times of day"),
}


@pytest.mark.parametrize("written", FORMS)
def test_forms_of_dates(written: str) -> None:
    read = form(Counter(DAYS.strftime(written)))
    assert read is not None
    assert (read.format, read.words) == FORMS[written]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["01/02/2024", "03/04/2024"], "month first (day and month can be swapped in every cell)"),
        (["01.02.2024", "05.03.2024"], "day first (day and month can be swapped in every cell)"),
        (["01/01/2024", "01/02/2024", "01/03/2024"], "day first"),  # the first of each month
        (["13/02/2024", "03/14/2024", "05/06/2024"], "the dates are written in more than one form"),
    ],
)
def test_day_and_month_are_decided_by_the_whole_column(cells: list[str], words: str) -> None:
    read = form(Counter(cells))
    assert read is not None
    assert read.words == words


@pytest.mark.parametrize(
    "cells", [["12:30", "99:10"], ["1.2.3", "1.2.4"], ["12345678"], ["2020", "2021"], ["555-1234"]]
)
def test_no_dates(cells: list[str]) -> None:
    assert form(Counter(cells)) is None


def texts(count: int) -> list[str]:
    return [f"t{i % count}" for i in range(ROWS)]


COLUMNS = {
    "every value is missing": ("k", [""] * ROWS, "dropped", "every value is missing"),
    "nearly empty": ("k", ["1.5", *[""] * (ROWS - 1)], "dropped", "98.3% of its values are missing"),
    "constant": ("k", [7] * ROWS, "dropped", "constant"),
    "constant but for gaps": ("k", [7, "", *[7] * (ROWS - 2)], "dropped", "constant, but for missing values"),
    "beyond float64's squares": ("k", [1e200, *A[1:]], "number", "read as missing: 1 infinite or beyond 1e+100"),
    "unique text": ("k", texts(ROWS), "dropped", "a different text in nearly every row"),
    "free text": ("k", ["lorem ipsum " * 9 + t for t in texts(30)], "dropped", "free text"),
    "identifier of groups": ("user_id", np.arange(ROWS) // 2 * 37, "dropped", "an identifier: its numbers are names"),
    "few groups": ("shop_id", np.arange(ROWS) % 4, "categories", ""),
    "many categories": ("k", texts(35), "categories", '15 rarer ones, 33% of the rows, as "other"'),
    "gaps in categories": ("k", ["", "NA", *texts(3)[2:]], "categories", '2 missing as a category: "NA" (1)'),
    "dates with gaps": (
        "k", ["", "0000-00-00", *(f"2024-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(2, ROWS))], "date",
        "year first: year, season, weekday, 2 missing filled with the median",
    ),
    "mixed dates": (
        "k", [f"1{i % 10}/0{1 + i % 9}/2024" if i % 2 else f"0{1 + i % 9}/1{3 + i % 7}/2024" for i in range(ROWS)],
        "dropped", "the dates are written in more than one form",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COLUMNS)
def test_what_a_column_is_read_as(tmp_path: Path, case: str) -> None:
    name, cells, kind, note = COLUMNS[case]
    profile = profiled(tmp_path, csv(columns(**{name: cells})))
    assert column(profile, name).kind == kind
    assert column(profile, name).note.startswith(note)
    assert np.isfinite(dataset_of(profile).x).all()


def test_categories_are_one_feature_each(tmp_path: Path) -> None:
    profile = profiled(tmp_path, csv({"k": ["red", "green", "", *["red", "blue", "red"] * 19], "a": A, "y": Y}))
    assert column(profile, "k").categories == ("blue", "green", "red", "missing")
    assert dataset_of(profile).x[:4, :4].tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]


COUNTS = [*[0, 1, 2, 3] * 12, *range(4, 14), 0, 1]
WARNINGS = {
    "outlier": (columns(a=[1e9, *A[1:]]), "values more than 10 robust standard deviations from the median: a (1, the"),
    "code for missing": (columns(a=[-999, -999, *A[2:]]), "a (2 of -999: does that stand for missing?)"),
    "spellings": (
        columns(k=["NY", "ny ", "N.Y.", "LA"] * 15),
        'k: are these one category each? "N.Y." and "NY" and "ny"',
    ),
    "spellings of classes": (columns(y=["yes", "Yes", "no"] * 20), 'y: are these one category each? "Yes" and "yes"'),
    "copies of a column": (columns(c=A), "columns with the same cells: a and c"),
    "copies of rows": (columns(a=A // 1, b=np.zeros(ROWS)), "copies of other rows: "),
    "counts": (columns(y=COUNTS), "y: its 14 whole numbers are read as quantities; --task classification"),
    "few whole numbers": (
        columns(y=np.arange(ROWS) % 6 + 3),
        "y: its 6 whole numbers are read as classes; --task regression",
    ),
    "half steps": (
        columns(y=np.arange(ROWS) % 6 / 2),
        "y: its 6 numbers are read as quantities; --task classification",
    ),
    "rare classes": (
        columns(y=["x", "p", *["u", "v"] * 29]),
        "2 rows dropped, of classes with fewer than 5 rows: 'x', 'p'",
    ),
    "infinite targets": (columns(y=["inf", *(A[1:] ** 3 + Y[1:])]), '1 row dropped: y is missing there or says "inf"'),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_is_said_beside_the_columns(tmp_path: Path, case: str) -> None:
    cells, words = WARNINGS[case]
    profile = profiled(tmp_path, csv(cells))
    assert [warning for warning in profile.warnings if words in warning]
    assert set(profile.warnings) <= set(dataset_of(profile).notes)


def test_few_rows_are_said(tmp_path: Path) -> None:
    few = {name: list(cells)[:30] for name, cells in columns().items()}
    assert profiled(tmp_path, csv(few)).warnings == ("only 30 rows: expect wide intervals",)


@pytest.mark.parametrize(
    ("y", "task", "classes"),
    [
        (["1", "2", "3+"] * 20, "classification", ("1", "2", "3+")),  # "3+" is a class, no stray word
        (["+", "-"] * 30, "classification", ("+", "-")),
        (["10", "9.0", "9"] * 20, "classification", ("9", "10")),  # in the order of numbers
        (["True", "False"] * 30, "classification", ("False", "True")),
        ([f"{v}%" for v in A], "regression", ()),
        (A * 1e20, "regression", ()),
    ],
)
def test_targets(tmp_path: Path, y: list[str], task: str, classes: tuple[str, ...]) -> None:
    data = dataset_of(profiled(tmp_path, csv(columns(a=np.arange(ROWS) % 7, y=y))))
    assert (data.task, data.classes) == (task, classes)
    assert np.isfinite(data.y).all()


def test_values_are_kept_in_float64(tmp_path: Path) -> None:
    data = dataset_of(profiled(tmp_path, csv(columns(a=A * 1e50, b=A * 1e-50, y=1e9 + A * 1e-3))))
    assert np.array_equal(data.x[:, 0], A * 1e50)
    assert np.array_equal(data.x[:, 1], A * 1e-50)
    assert np.array_equal(data.y, 1e9 + A * 1e-3)


@pytest.mark.parametrize("y", [np.arange(ROWS) % 3, np.arange(ROWS) * 7 % 61, np.where(Y, 5, 9)])
def test_targets_of_which_there_is_no_doubt(tmp_path: Path, y: np.ndarray) -> None:
    assert profiled(tmp_path, csv(columns(y=y))).warnings == ()
