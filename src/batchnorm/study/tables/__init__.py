"""A table of the user's own: read, described column by column, and made a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchnorm.study.data import DataError, Dataset, Task
from batchnorm.study.tables.layout import printable
from batchnorm.study.tables.profile import Profile, profile_of
from batchnorm.study.tables.reading import read_frame, read_table
from batchnorm.study.tables.recipe import Column, Recipe
from batchnorm.study.tables.text import profile_text

__all__ = ["Column", "Profile", "Recipe", "from_frame", "inspect", "profile_text", "table"]


COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def inspect(
    path: Path,
    target: str | None = None,
    task: Task | None = None,
    *,
    drop: Sequence[str | int] = (),
    header: bool | None = None,
) -> Profile:
    """Read a table and say what each column is read as, what is done to it, and every problem there is.

    Args:
        path: A CSV file (or one with other separators), an Excel, Parquet or Feather file, or a pipe; it may be
            compressed.
        target: The column to predict: its name, or its place (1 the first, −1 the last) if no column has that name.
        task: What the target is; None: regression for numbers with more than 20 distinct values.
        drop: Columns to leave out, by name or place.
        header: Whether the first row holds the names; None: that is decided by the cells below it.

    Raises:
        DataError: in one line, if the file cannot be read. Other problems stand in the profile.
    """
    reading = read_table(path, header)
    stem = Path(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem
    return profile_of(reading, printable(stem), target, task, drop=drop)


def table(
    path: Path,
    target: str | None = None,
    task: Task | None = None,
    *,
    drop: Sequence[str | int] = (),
    header: bool | None = None,
) -> Dataset:
    """Return a table as a dataset; the arguments are those of `inspect`.

    Raises:
        DataError: in one line that names every problem, if no study can run on the table.
    """
    return _dataset(inspect(path, target, task, drop=drop, header=header))


def from_frame(
    frame: Any,
    target: str | int,
    task: Task | None = None,
    *,
    drop: Sequence[str | int] = (),
    name: str = "table",
) -> Dataset:
    """Return a pandas DataFrame as a dataset, in the way that `table` returns a file.

    Args:
        frame: The table; an index with a name is a column of it.
        target: The column to predict, by name or place.
        task: What the target is; None: regression for numbers with more than 20 distinct values.
        drop: Columns to leave out, by name or place.
        name: What the dataset is called.

    Raises:
        DataError: in one line that names every problem, if no study can run on the table.
    """
    return _dataset(profile_of(read_frame(frame), printable(name), str(target), task, drop=drop))


def _dataset(profile: Profile) -> Dataset:
    if profile.dataset is None:
        raise DataError("; ".join(profile.problems))
    return profile.dataset
