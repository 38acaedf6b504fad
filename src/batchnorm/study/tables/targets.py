"""The column to predict: what it holds, which task that makes, and the rows that have to go."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchnorm.study.data import FEWEST_PER_CLASS, DataError, Task
from batchnorm.study.tables.columns import Cells, date_form, no_scalars
from batchnorm.study.tables.layout import plural, printable
from batchnorm.study.tables.numerals import MISSING_NUMBERS, MOST_WORDS
from batchnorm.study.tables.recipe import Column

MOST_CLASSES = 20
FEW_PER_ROW = 0.25  # distinct whole numbers, up to which counts might be classes too
LOST = 0.1  # the share of rows in classes too rare to keep from which numbers are rather read as quantities


@dataclass(frozen=True)
class Target:
    """What a study predicts.

    Attributes:
        column: How its cells are read.
        task: What is predicted.
        classes: The classes in the order of their numbers; none for regression.
        rows: The rows that are kept, as a mask.
        notes: Rows that were dropped, and what else the column could be read as.
    """

    column: Column
    task: Task
    classes: tuple[str, ...]
    rows: NDArray[np.bool_]
    notes: tuple[str, ...]


def target_of(cells: Cells, task: Task | None) -> Target:
    """Return what a column is to be predicted as.

    Raises:
        DataError: in one line, if no study can predict it.
    """
    shown = repr(printable(cells.name))
    if what := no_scalars(cells.values):
        raise DataError(f"target {shown} cannot be predicted: {what}")
    if cells.present == 0:
        raise DataError(f"target {shown} is missing in every row")
    how = date_form(cells)
    if how is not None and cells.distinct > 1:
        raise DataError(
            f"target {shown} holds {'times' if how.kind == 'time' else 'dates'}: add a column with a number made of "
            "them, the days since a fixed one, say, and predict that"
        )
    number = None if _classes_among_numbers(cells) else cells.number
    if task == "regression" and number is None:
        example = next(text for text in cells.counts if text not in cells.missing)
        raise DataError(f"target {shown} holds text such as {printable(example)!r}: regression needs numbers")
    if number is None:
        column = Column(cells.name, "categories", missing=cells.missing)
        names = cells.text
        return _classes(cells, column, names.mask(names.isin(cells.missing), ""), [])
    values = cells.numbers
    chosen, note = (task, "") if task is not None else _task(cells.name, values)
    if chosen == "classification":
        names = pd.Series(["" if np.isnan(value) else f"{value:.15g}" for value in values])
        return _classes(cells, replace(number, fill=0.0), names, [note])
    rows = ~np.isnan(values)
    notes = [*_without_target(cells, number, rows), note]
    return Target(replace(number, fill=0.0, note="the target"), "regression", (), rows, tuple(filter(None, notes)))


def _classes_among_numbers(cells: Cells) -> bool:
    """Return whether words among few numbers are classes too: 1, 2 and "3 and more"."""
    words = [] if cells.spelling is None else [w for w in cells.spelling.words if w[0].lower() not in MISSING_NUMBERS]
    return cells.distinct <= MOST_CLASSES and any(count >= FEWEST_PER_CLASS for _, count in words)


def _task(name: str, values: NDArray[np.float64]) -> tuple[Task, str]:
    """Return the task that suits a column of numbers, with a note where the other would do too."""
    levels, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    if len(levels) <= 2:
        return "classification", ""
    whole = bool((levels == np.floor(levels)).all())
    common = counts[counts >= FEWEST_PER_CLASS].sum() / counts.sum()
    what = f"{printable(name)}: its {len(levels)} {'whole ' * whole}numbers are read as"
    if whole and len(levels) <= MOST_CLASSES and common >= 1 - LOST:
        numbered = common == 1 and np.array_equal(levels, np.arange(len(levels)))  # classes and nothing else
        return "classification", "" if numbered else f"{what} classes; --task regression predicts their size"
    few = len(levels) <= MOST_CLASSES or (whole and levels[0] >= 0 and len(levels) <= FEW_PER_ROW * counts.sum())
    note = f"{what} quantities; --task classification makes a class of each"
    return "regression", note if few and common >= 1 / 2 else ""


def _classes(cells: Cells, column: Column, names: "pd.Series[Any]", notes: Sequence[str]) -> Target:
    """Return the target with its classes in order, without those that are too rare to be split."""
    counts = {str(name): int(count) for name, count in names[names != ""].value_counts().items()}
    shown = printable(cells.name)
    if len(counts) == 1:
        raise DataError(
            f"target {shown!r} has one class, {printable(next(iter(counts)))!r}: there is nothing to tell apart"
        )
    rare = [name for name, count in counts.items() if count < FEWEST_PER_CLASS]
    order = float if column.kind == "number" else str
    classes = tuple(sorted((name for name in counts if name not in rare), key=order))
    if len(classes) < 2:
        raise DataError(
            f"target {shown!r} has fewer than two classes with {FEWEST_PER_CLASS} rows or more"
            + ("; --task regression predicts numbers" if column.kind == "number" else "")
        )
    said = _without_target(cells, column, (names != "").to_numpy())
    if rare:
        lost = sum(counts[name] for name in rare)
        words = ", ".join(repr(printable(name, 20)) for name in rare[:MOST_WORDS])
        more = f" and {plural(len(rare) - MOST_WORDS, 'other')}" if len(rare) > MOST_WORDS else ""
        said.append(f"{plural(lost, 'row')} dropped, of classes with fewer than {FEWEST_PER_CLASS} rows: {words}{more}")
    rows = names.isin(classes).to_numpy()
    noted = replace(column, note=f"the target, {len(classes)} classes")
    return Target(noted, "classification", classes, rows, tuple(filter(None, [*said, *notes])))


def _without_target(cells: Cells, column: Column, rows: NDArray[np.bool_]) -> list[str]:
    """Return what is to be said about rows whose target is missing, with the words that were read so."""
    if rows.all():
        return []
    spelled = cells.spelling if column.kind == "number" else None
    words = list(cells.missing) if spelled is None else [text for text, _ in spelled.words]
    quoted = ", ".join(f'"{printable(word, 20)}"' for word in words[:MOST_WORDS])
    lost = plural(int((~rows).sum()), "row")
    said = f" or says {quoted}" if quoted else ""
    return [f"{lost} dropped: {printable(cells.name)} is missing there{said}"]
