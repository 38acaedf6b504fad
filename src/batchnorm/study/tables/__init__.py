"""A table of the user's own: CSV or Parquet to a dataset, saying what was done to each column."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from batchnorm.study.data import FEW_ROWS, FEWEST_PER_CLASS, DataError, Dataset, Task, checked

MOST_CATEGORIES = 20
MOST_CLASSES = 20


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV (comma, semicolon or tab) or Parquet file.

    Raises:
        DataError: in one line, if it cannot be read or holds no rows.
    """
    try:
        if path.suffix.lower() in {".parquet", ".pq"}:
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, encoding="utf-8-sig", low_memory=False)
            separator = next((s for s in (";", "\t") if frame.shape[1] == 1 and s in str(frame.columns[0])), None)
            if separator:
                frame = _more_numbers(path, separator)
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        reason += "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(f"{path} cannot be read: {reason}") from None
    if frame.empty:
        raise DataError(f"{path} has columns but no rows")
    frame.columns = [str(name).strip() for name in frame.columns]
    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"{path} has two columns called {twice!r}; rename one")
    return frame


def _more_numbers(path: Path, separator: str) -> pd.DataFrame:
    """Read a CSV of another separator with decimal points or decimal commas, whichever makes more columns numeric."""
    frames = [
        pd.read_csv(path, sep=separator, decimal=decimal, encoding="utf-8-sig", low_memory=False) for decimal in ".,"
    ]
    return max(frames, key=lambda frame: frame.select_dtypes("number").shape[1])


def _is_date(column: "pd.Series[Any]") -> bool:
    if types.is_datetime64_any_dtype(column):
        return True
    texts = column.dropna().astype(str)
    iso = texts.str.match(r"\d{4}-\d\d-\d\d").all()
    return bool(iso) and not types.is_numeric_dtype(column)


def _numbers_the_rows(column: "pd.Series[Any]") -> bool:
    return types.is_integer_dtype(column) and len(column) > 1 and bool((column.diff().iloc[1:] == 1).all())


def _as_numbers(column: "pd.Series[Any]") -> "pd.Series[Any] | None":
    """Return a column of numbers as floats, None if it is categorical; raise on numbers with stray text among them."""
    if types.is_bool_dtype(column) or types.is_numeric_dtype(column):
        return column.astype(float)
    present = column.dropna().astype(str).str.strip()
    numbers = pd.to_numeric(present, errors="coerce")
    if numbers.notna().all():
        return pd.to_numeric(column, errors="coerce").astype(float)
    if numbers.notna().mean() < 0.8:
        return None
    row = numbers.index[numbers.isna()][0]
    raise DataError(
        f"column {column.name!r} holds numbers, but data row {int(row) + 1} says {present[row]!r}; "
        "leave the cell empty if the value is missing"
    )


def _encode(frame: pd.DataFrame) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Return the features as numbers, with a note a column: what it was taken for, and what was done to it."""
    parts: list[np.ndarray[Any, Any]] = []
    notes: list[str] = []
    for name in frame.columns:
        column = frame[name]
        missing = int(column.isna().sum())
        if missing == len(column):
            notes.append(f"{name}: dropped, every value is missing")
        elif column.nunique(dropna=False) == 1:
            notes.append(f"{name}: dropped, constant")
        elif _numbers_the_rows(column):
            notes.append(f"{name}: dropped, it numbers the rows")
        elif _is_date(column):
            notes.append(f"{name}: dropped, a date; add the parts that matter as columns of their own")
        elif (numbers := _as_numbers(column)) is not None:
            parts.append(numbers.fillna(numbers.median()).to_numpy()[:, None])
            notes.append(f"{name}: numbers" + (f", {missing} missing filled with the median" if missing else ""))
        elif column.nunique() == len(column) - missing > MOST_CATEGORIES:
            notes.append(f"{name}: dropped, a different text in every row")
        else:
            common = column.value_counts().index[:MOST_CATEGORIES]
            kept = column.astype("object").where(column.isin(common) | column.isna(), "other").fillna("missing")
            parts.append(pd.get_dummies(kept).to_numpy(dtype=float))
            notes.append(f"{name}: {kept.nunique()} categories" + (f", {missing} missing as one" if missing else ""))
    if not parts:
        raise DataError("no column is left to learn from: " + "; ".join(notes))
    return np.hstack(parts), notes


def _task_of(target: "pd.Series[Any]", task: Task | None) -> Task:
    numeric = types.is_numeric_dtype(target) and not types.is_bool_dtype(target)
    if task == "regression" and not numeric:
        raise DataError(f"target {target.name!r} holds text such as {str(target.iloc[0])!r}: regression needs numbers")
    return task or ("regression" if numeric and target.nunique() > MOST_CLASSES else "classification")


def _target(frame: pd.DataFrame, name: str | None) -> "pd.Series[Any]":
    columns = ", ".join(map(str, frame.columns))
    if name is None:
        raise DataError(f"name the column to predict with --target; the table has: {columns}")
    if name not in frame.columns:
        raise DataError(f"there is no column {name!r}; the table has: {columns}")
    target = frame[name]
    if target.isna().any():
        rows = target.isna().sum()
        raise DataError(f"target {name!r} is missing in {rows} of {len(target)} rows; fill or drop them first")
    if types.is_numeric_dtype(target) and not np.isfinite(target.astype(float)).all():
        raise DataError(f"target {name!r} holds infinite values; fill or drop them first")
    return target


def table(path: Path, target: str | None = None, task: Task | None = None) -> Dataset:
    """Read a table and make it a dataset: types inferred, categories one-hot, gaps filled, everything noted.

    Args:
        path: A CSV or Parquet file.
        target: The column to predict.
        task: What the target is; None: regression for numbers with more than 20 distinct values.

    Raises:
        DataError: in one line, for anything that no study can run on.
    """
    frame = read_table(path)
    y = _target(frame, target)
    what = _task_of(y, task)
    rows = np.ones(len(frame), dtype=bool)
    notes: list[str] = []
    if what == "classification":
        if y.nunique() == 1:
            raise DataError(f"target {target!r} has one class, {str(y.iloc[0])!r}: there is nothing to tell apart")
        counts = y.map(y.value_counts())
        rows = (counts >= FEWEST_PER_CLASS).to_numpy()
        if not rows.all():
            notes.append(f"{(~rows).sum()} rows dropped, of classes with fewer than {FEWEST_PER_CLASS} rows")
        if y[rows].nunique() < 2:
            raise DataError(f"target {target!r} has fewer than two classes with {FEWEST_PER_CLASS} rows or more")
    features, column_notes = _encode(frame[rows].drop(columns=[target]))
    if rows.sum() < FEW_ROWS:
        notes.append(f"only {rows.sum()} rows: expect wide intervals")
    codes, classes = pd.factorize(y[rows], sort=True)
    source = f"{rows.sum():,} rows of {path.name}, predicting {target} ({what})"
    return checked(
        Dataset(
            path.stem,
            source,
            features.astype(np.float32),
            codes.astype(np.int64) if what == "classification" else y[rows].to_numpy(dtype=np.float32),
            what,
            tuple(str(c) for c in classes) if what == "classification" else (),
            (*notes, *column_notes),
        )
    )
