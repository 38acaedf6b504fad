"""How a table becomes numbers: all that is needed to read its file again and to encode it in the same way."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from batchnorm.study.data import Task

Kind = Literal["number", "categories", "date", "time", "dropped"]
Reader = Literal["csv", "excel", "parquet", "feather", "frame"]

LARGEST = 1e100  # magnitudes beyond it are read as missing: their squares overflow even in float64
DAYS_PER_YEAR = 365.2425
PARTS = {"year": 1, "season": 2, "weekday": 7, "hour": 2}  # of a date, with the number of features that each is


@dataclass(frozen=True)
class Column:
    """One column of a table: what it was read as, and how its cells become features.

    Attributes:
        name: Its name, without outer spaces or unprintable characters; unique in the table.
        kind: What it was read as.
        note: What was done to it, or why it was dropped, in words.
        parse: How its numbers are written, in words: "plain", "percent", "currency", "decimal comma", ...
        replace: Pairs (old, new) of strings that are replaced one after another before a cell is read as a number.
        missing: Cells, beside empty ones, that are read as missing; so is whatever else is no number, in a column of
            numbers.
        gaps: How many cells are missing, in the rows that are kept.
        fill: What stands for a missing number (or, in days, date or time): the median.
        categories: The features of a column of categories, in order. A text that is not among them is "other", a
            missing cell is "missing".
        format: How its dates or times are written, for `pandas.to_datetime`; "" if they are no text.
        parts: What features are made of, from a date or time: "year", "season", "weekday" and "hour", in this order.
    """

    name: str
    kind: Kind
    note: str = ""
    parse: str = "plain"
    replace: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    gaps: int = 0
    fill: float = 0.0
    categories: tuple[str, ...] = ()
    format: str = ""
    parts: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many features the column becomes."""
        if self.kind == "categories":
            return len(self.categories)
        return {"number": 1, "dropped": 0}.get(self.kind, sum(PARTS[part] for part in self.parts))


@dataclass(frozen=True)
class Recipe:
    """How a file becomes the inputs x and the targets y of a study.

    Attributes:
        path: The file; "" for a data frame.
        reader: What reads it: `pandas.read_csv`, `pandas.read_excel`, or pyarrow for Parquet and Feather.
        read: Keyword arguments for that reader, beside the names. Cells of a text file or a spreadsheet are all read
            as text.
        names: A name for each column of the file, in order.
        target: The column to predict: "number", or "categories" for classes that are named by text.
        task: What is predicted.
        columns: All other columns, in order.
        classes: The classes in the order of their numbers, each as it is written in the table without outer spaces
            (as a number without superfluous zeros if `target` is one).
        dropped_rows: How many rows were dropped: those whose target is missing or, for classification, no class.
    """

    path: str
    reader: Reader
    read: dict[str, Any]
    names: tuple[str, ...]
    target: Column
    task: Task
    columns: tuple[Column, ...]
    classes: tuple[str, ...] = field(default=())
    dropped_rows: int = 0


def read(recipe: Recipe, source: Any = None) -> pd.DataFrame:
    """Read the file of a recipe, or the `source` (a buffer) that holds its content.

    Raises:
        ValueError: if the recipe is that of a data frame: `encode` takes the frame itself, with `recipe.names`.
    """
    source = recipe.path if source is None else source
    names = list(recipe.names)
    if recipe.reader == "csv":
        return pd.read_csv(source, names=names, **recipe.read)
    if recipe.reader == "excel":
        return pd.read_excel(source, names=names, **recipe.read)
    if recipe.reader == "frame":
        raise ValueError("the table was a data frame, which no file holds: encode the frame itself")
    if recipe.reader == "parquet":
        from pyarrow import parquet

        frame = parquet.ParquetFile(source).read().to_pandas(ignore_metadata=True)
    else:
        from pyarrow import feather

        frame = feather.read_table(source).to_pandas(ignore_metadata=True)
    return frame.set_axis(names, axis=1)


def texts(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the cells as text without outer spaces; "" where one is missing."""
    if not isinstance(column.dtype, pd.StringDtype):
        column = column.astype("object").where(column.notna(), "").astype(str)
    return column.fillna("").str.strip()


def numbers(column: "pd.Series[Any]", how: Column) -> NDArray[np.float64]:
    """Return the cells as numbers, NaN where one is missing or none."""
    if types.is_numeric_dtype(column) and not types.is_bool_dtype(column):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        cells = texts(column)
        if how.missing:
            cells = cells.mask(cells.isin(how.missing), "")
        for old, new in how.replace:
            cells = cells.str.replace(old, new, regex=False)
        values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.abs(values) < LARGEST, values, np.nan)


def days(column: "pd.Series[Any]", how: Column) -> NDArray[np.float64]:
    """Return dates and times as days since the start of 1970, NaN where one is missing."""
    cells = texts(column) if how.format else column
    moments = pd.to_datetime(cells, format=how.format or None, errors="coerce", utc=True)
    return np.asarray((moments - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1), dtype=np.float64)


def dated(moments: NDArray[np.float64], part: str) -> NDArray[np.float64]:
    """Return the features, (N, k), that one part of a date is: days since the start of 1970 are given."""
    if part == "year":
        return 1970 + moments[:, None] / DAYS_PER_YEAR
    if part == "weekday":
        return np.eye(7)[(np.floor(moments).astype(int) + 3) % 7]  # Monday first: 1970 began on a Thursday
    angle = 2 * np.pi * (moments / DAYS_PER_YEAR if part == "season" else moments % 1)
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def features(column: "pd.Series[Any]", how: Column) -> NDArray[np.float64]:
    """Return the features, (N, k), that a column becomes."""
    if how.kind == "categories":
        cells = texts(column)
        cells = cells.mask(cells.isin(how.missing) | (cells == ""), "missing")
        cells = cells.where(cells.isin(how.categories), "other")
        return (cells.to_numpy()[:, None] == np.array(how.categories, dtype=object)).astype(np.float64)
    values = numbers(column, how) if how.kind == "number" else days(column, how)
    values = np.where(np.isnan(values), how.fill, values)
    if how.kind == "number":
        return values[:, None]
    return np.hstack([dated(values, part) for part in how.parts])


def targets(column: "pd.Series[Any]", recipe: Recipe) -> NDArray[Any]:
    """Return the values to predict, NaN where one is missing; or class numbers, −1 where there is none."""
    values = numbers(column, recipe.target) if recipe.target.kind == "number" else None
    if values is not None and recipe.task == "regression":
        return values
    cells = texts(column) if values is None else pd.Series([f"{value:.15g}" for value in values])
    return cells.map({name: number for number, name in enumerate(recipe.classes)}).fillna(-1).to_numpy(dtype=np.int64)


def encode(recipe: Recipe, frame: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return inputs x (N, features) and targets y (N,) of a frame that was read by the same recipe."""
    y = targets(frame[recipe.target.name], recipe)
    rows = ~np.isnan(y) if recipe.task == "regression" else y >= 0
    used = [column for column in recipe.columns if column.kind != "dropped"]
    return np.hstack([features(frame[column.name][rows], column) for column in used]), y[rows]
