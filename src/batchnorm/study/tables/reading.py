"""Reading a file: from its bytes to a frame with a name for each column, and how to read it once more."""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from batchnorm.study.data import DataError, Task
from batchnorm.study.tables import layout
from batchnorm.study.tables.content import Content, content
from batchnorm.study.tables.layout import Names, plural, printable
from batchnorm.study.tables.recipe import Column, Reader, Recipe, read

SHEET_ROWS = 200  # of a spreadsheet, looked at to find the header


@dataclass(frozen=True)
class Reading:
    """A table as it was read, nothing interpreted yet.

    Attributes:
        path: The file; "" for a data frame.
        reader: What read it.
        read: Keyword arguments of that reader, beside the names.
        names: What the columns are called.
        frame: The cells: as text from a text file or a spreadsheet, else with the types of the file.
        notes: What is worth knowing about the file: its encoding, lines that were skipped, a header that is none.
    """

    path: str
    reader: Reader
    read: dict[str, Any]
    names: Names
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()

    def recipe(self, target: Column, task: Task, columns: Sequence[Column]) -> Recipe:
        """Return how to read and encode the table, without classes."""
        return Recipe(self.path, self.reader, self.read, self.names.names, target, task, tuple(columns))


def read_table(path: Path, header: bool | None = None) -> Reading:
    """Read a file of any of the formats, compressed or not.

    Args:
        path: The file, or a pipe.
        header: Whether the first row of a text file or a spreadsheet holds the names; None: look at it.

    Raises:
        DataError: in one line, if the file cannot be read or holds no rows.
    """
    shown = printable(str(path), 500)
    try:
        file = content(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of openpyxl, about styles and the like
            warnings.simplefilter("error", pd.errors.ParserWarning)
            reading = {"text": _text, "excel": _excel}.get(file.format, _typed)(path, file, header)
    except Exception as error:  # a damaged file raises what its own reader raises: a dozen classes
        raise DataError(f"{shown} {_reason(error)}") from None
    if not len(reading.frame.columns):
        raise DataError(f"{shown} has no columns")
    if reading.frame.empty:
        raise DataError(f"{shown} has columns but no rows")
    return reading


def read_frame(frame: Any, header: None = None) -> Reading:
    """Return a data frame as a reading; an index with names becomes columns.

    Raises:
        DataError: if it is no pandas data frame, or an empty one.
    """
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"the table must be a pandas DataFrame, got {type(frame).__name__}")
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    if frame.empty:
        raise DataError("the data frame has no rows" if len(frame.columns) else "the data frame has no columns")
    return _named("", "frame", {}, frame.reset_index(drop=True))


def _named(path: str, reader: Reader, options: dict[str, Any], frame: pd.DataFrame) -> Reading:
    raw = [" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame.columns]
    names = layout.names(raw)
    return Reading(path, reader, options, names, frame.set_axis(list(names.names), axis=1))


def _reason(error: Exception) -> str:
    """Return what went wrong, as the end of a sentence that begins with the file's name."""
    if isinstance(error, DataError):
        return str(error)
    text = " ".join(str(error).split())
    if ragged := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", text):
        most, line, count = ragged.groups()
        return f"cannot be read: line {line} has {count} cells, the lines above it {most}; mend or remove it"
    if isinstance(error, pd.errors.ParserWarning):
        return "cannot be read: its rows have more cells than there are names; mend the header"
    return f"cannot be read: {printable(text, 160) or type(error).__name__}"


def _text(path: Path, file: Content, header: bool | None) -> Reading:
    encoding, note = layout.encoding(file.plain)
    plan = layout.layout(file.plain, encoding)
    names, first, notes = _header(plan.rows, plan.width, header)
    options: dict[str, Any] = {
        "sep": plan.separator,
        "header": 0 if first else None,
        "skiprows": plan.skipped,
        "encoding": encoding,
        "encoding_errors": "replace",
        "dtype": str,
        "na_filter": False,
        "index_col": False,
        "skipinitialspace": True,
    }
    options |= {"compression": file.compression} if file.compression else {}
    notes = [*notes, *([note] if note else [])]
    if plan.skipped:
        notes.append(f"{plural(plan.skipped, 'line')} above the table skipped")
    try:
        frame = _frame(file, "csv", options, names)
    except pd.errors.ParserError as error:
        if "EOF inside string" not in str(error):
            raise
        options["quoting"] = 3  # csv.QUOTE_NONE
        frame = _frame(file, "csv", options, names)
        notes.append("a quotation mark is not closed: all of them are read as they stand")
    if b'"' in file.plain and file.plain.count(b"\n") > len(frame) + plan.skipped + 1:
        broken = sum(int(frame[name].str.contains("\n", regex=False).sum()) for name in frame)
        notes += [f"{plural(broken, 'cell')} with line breaks: is a quotation mark missing?"] if broken else []
    return Reading(str(path), "csv", options, names, frame, tuple(notes))


def _excel(path: Path, file: Content, header: bool | None) -> Reading:
    with pd.ExcelFile(io.BytesIO(file.plain)) as book:
        sheets = [str(name) for name in book.sheet_names]
        options: dict[str, Any] = {"dtype": str, "na_filter": False}
        for sheet in sheets:
            head = book.parse(sheet, header=None, nrows=SHEET_ROWS, **options)
            rows = [[str(cell).strip() for cell in row] for row in head.itertuples(index=False)]
            begins = next((i for i, row in enumerate(rows) if sum(map(bool, row)) > 1), None)
            if begins is not None:
                break
        else:
            raise DataError("has no sheet with a table of two columns or more")
    names, first, notes = _header(rows[begins:], len(rows[begins]), header)
    options |= {"sheet_name": sheet, "header": 0 if first else None, "skiprows": begins}
    if len(sheets) > 1:
        notes.append(f"sheet {printable(sheet)!r} of {len(sheets)} is read")
    if begins:
        notes.append(f"{plural(begins, 'line')} above the table skipped")
    return Reading(str(path), "excel", options, names, _frame(file, "excel", options, names), tuple(notes))


def _typed(path: Path, file: Content, header: bool | None) -> Reading:
    """Read a file whose columns have names and types."""
    from pyarrow import feather, parquet

    source = io.BytesIO(file.plain)
    table = parquet.ParquetFile(source).read() if file.format == "parquet" else feather.read_table(source)
    reader: Reader = "parquet" if file.format == "parquet" else "feather"
    return _named(str(path), reader, {}, table.to_pandas(ignore_metadata=True))


def _frame(file: Content, reader: Reader, options: dict[str, Any], names: Names) -> pd.DataFrame:
    recipe = Recipe("", reader, options, names.names, Column("", "dropped"), "regression", ())
    return read(recipe, io.BytesIO(file.raw))  # as it will be read again


def _header(rows: layout.Rows, width: int, header: bool | None) -> tuple[Names, bool, list[str]]:
    """Return the columns' names, whether they are in the first row, and what is to be said about that."""
    first, below = list(rows[0]), rows[1:]
    named = layout.has_header(first, below) if header is None else header
    lacking = width - len(first)
    if named and lacking > 0:  # a name for each column but that of the row names, or no end of line in each row
        blank = all(not row[-1] for row in below if len(row) == width)
        first = [*first, *[""] * lacking] if blank else [*[""] * lacking, *first]
    names = layout.names(first if named else [*first, *[""] * lacking], numbered=not named)
    notes: list[str] = []
    if header is None and not named:
        notes.append(
            f"the first row ({printable(', '.join(first), 40)}) looks like data, not like names: it is read as a row, "
            f'and the columns are called "column 1" to "column {len(names.names)}"'
        )
    return names, named, notes
