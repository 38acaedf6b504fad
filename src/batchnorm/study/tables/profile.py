"""The profile of a table: every column with what is done to it, every problem, and the dataset if one can be made."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchnorm.study.data import FEW_ROWS, DataError, Dataset, Task, checked
from batchnorm.study.tables import checks
from batchnorm.study.tables.columns import Cells, column_of
from batchnorm.study.tables.layout import Names, printable
from batchnorm.study.tables.reading import Reading
from batchnorm.study.tables.recipe import Column, encode
from batchnorm.study.tables.targets import Target, target_of

MOST_LISTED = 30


@dataclass(frozen=True)
class Profile:
    """What a table holds, and what a study makes of it.

    Attributes:
        name: The table's.
        rows: How many rows it has.
        columns: What each column is read as, the target among them.
        warnings: What is worth knowing, the most important first.
        problems: Why no study can run on the table; none if one can.
        dataset: What a study runs on; None if there are problems.
    """

    name: str
    rows: int
    columns: tuple[Column, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]
    dataset: Dataset | None


def described(column: Column) -> str:
    """Return what a column is read as and what was done to it, in words.

    >>> described(Column("a", "dropped", "constant")), described(Column("b", "number"))
    ('dropped, constant', 'numbers')
    """
    return ", ".join(filter(None, (kind_in_words(column), column.note)))


def kind_in_words(column: Column) -> str:
    """Return what a column is read as: "numbers", "3 categories", "date", "dropped"."""
    if column.kind == "categories" and column.categories:
        return f"{len(column.categories)} categories"
    return {"number": "numbers", "categories": "classes"}.get(column.kind, column.kind)


def column_notes(columns: Sequence[Column]) -> tuple[str, ...]:
    """Return a line for each column to which something was done."""
    return tuple(f"{c.name}: {described(c)}" for c in columns if (c.kind, c.note) != ("number", ""))


def profile_of(
    reading: Reading, name: str, target: str | None, task: Task | None, *, drop: Sequence[str | int] = ()
) -> Profile:
    """Return what a table holds and what a study makes of it; problems are gathered, not raised."""
    problems: list[str] = []
    cells = _cells(reading)
    chosen, unwanted = _positions(reading.names, target, drop, problems)
    predicted: Target | None = None
    if chosen is not None:
        try:
            predicted = target_of(cells[chosen], task)
        except DataError as error:
            problems.append(str(error))
    if predicted is not None and not predicted.rows.all():
        cells = [replace(each, values=each.values[predicted.rows].reset_index(drop=True)) for each in cells]
    columns: list[Column] = []
    for i, each in enumerate(cells):
        if i == chosen:
            columns.append(Column(each.name, "dropped", "the target") if predicted is None else predicted.column)
        else:
            columns.append(Column(each.name, "dropped", "as asked") if i in unwanted else column_of(each))
    features = [column for i, column in enumerate(columns) if i != chosen]
    if not any(column.width for column in features):
        reasons = "; ".join(f"{column.name}: {described(column)}" for column in features[:MOST_LISTED])
        problems.append("no column is left to learn from" + (f": {reasons}" if reasons else ""))
    noted = _warnings(cells, columns, chosen)
    dataset, first = None, [*reading.notes, *_repeated_names(reading.names)]
    if predicted is not None:
        first = [*predicted.notes, *first]
        if not problems:
            dataset = _dataset(reading, name, predicted, features, problems=problems)
    if dataset is not None:
        first = [*checks.leaks(features, dataset.x, dataset.y, dataset.task), *first]
        first += [f"only {len(dataset.x)} rows: expect wide intervals"] if len(dataset.x) < FEW_ROWS else []
        dataset = replace(dataset, notes=(*first, *noted, *column_notes(columns)), profile=tuple(columns))
    return Profile(name, len(reading.frame), tuple(columns), (*first, *noted), tuple(problems), dataset)


def _cells(reading: Reading) -> list[Cells]:
    """Return the columns; where some have decimal commas, the others that may have are told so."""
    cells = [Cells(name, reading.frame[name], i in reading.names.unnamed) for i, name in enumerate(reading.names.names)]
    commas = [each.spelling is not None and "decimal comma" in each.spelling.parse for each in cells]
    if not any(commas):
        return cells
    return [each if has else replace(each, comma=True) for each, has in zip(cells, commas, strict=True)]


def _dataset(
    reading: Reading, name: str, predicted: Target, features: Sequence[Column], *, problems: list[str]
) -> Dataset | None:
    """Return what a study runs on; if it cannot, None, and why among the problems."""
    recipe = reading.recipe(predicted.column, predicted.task, features)
    recipe = replace(recipe, classes=predicted.classes, dropped_rows=int((~predicted.rows).sum()))
    x, y = encode(recipe, reading.frame)
    source = f"{len(x):,} rows of {name}, predicting {predicted.column.name} ({predicted.task})"
    classes = tuple(printable(text) for text in predicted.classes)
    try:
        return checked(Dataset(name, source, x, y, predicted.task, classes, recipe=recipe))
    except DataError as error:
        problems.append(str(error))
        return None


def _warnings(cells: Sequence[Cells], columns: Sequence[Column], chosen: int | None) -> list[str]:
    """Return what is worth knowing about the cells of the columns that are used."""
    used = [i for i, column in enumerate(columns) if column.width or (i == chosen and column.kind != "dropped")]
    lines = checks.repeated([cells[i] for i in used], "" if chosen is None else cells[chosen].name)
    lines += checks.outliers([(cells[i], columns[i]) for i in used])
    for i in used:
        if columns[i].kind == "categories":
            lines += checks.alike(cells[i])
    return lines


def _positions(
    names: Names, target: str | None, drop: Sequence[str | int], problems: list[str]
) -> tuple[int | None, set[int]]:
    """Return the numbers of the target and of the columns to drop; names that are none go to the problems."""
    chosen, unwanted = None, set[int]()
    for asked in drop:
        try:
            unwanted.add(_position(names, str(asked), "--drop"))
        except DataError as error:
            problems.append(str(error))
    try:
        if target is None:
            raise DataError(f"name the column to predict with --target; the table has: {_listed(names)}")
        chosen = _position(names, target, "--target")
    except DataError as error:
        problems.append(str(error))
    if chosen in unwanted:
        problems.append(f"{names.names[chosen]!r} cannot be the target and be dropped")
        unwanted.discard(chosen)
    return chosen, unwanted


def _position(names: Names, asked: str, option: str) -> int:
    """Return which column is meant: by its name, or else by its place, 1 the first and −1 the last."""
    shown = asked.strip()
    if shown in names.repeated:
        places = " and ".join(str(i) for i, name in enumerate(names.raw, 1) if name == shown)
        raise DataError(
            f"the table has several columns called {shown!r}: rename them, or give {option} the place of one, {places}"
        )
    if shown in names.names:
        return names.names.index(shown)
    width = len(names.names)
    if re.fullmatch(r"-?\d{1,9}", shown):
        place = int(shown)
        if place and -width <= place <= width:
            return place - 1 if place > 0 else place + width
    if names.raw.count(shown) == 1:  # the first row, which was no header, or a name that cannot be printed
        return names.raw.index(shown)
    if re.fullmatch(r"-?\d{1,9}", shown):
        raise DataError(f"there is no column {shown}: columns are counted from 1 to {width}, or from -1, the last")
    folded = {name.casefold(): name for name in names.names}
    near = difflib.get_close_matches(shown.casefold(), folded, 1, 0.75)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    raise DataError(f"there is no column {printable(shown)!r}; {hint}the table has: {_listed(names)}")


def _repeated_names(names: Names) -> list[str]:
    later = [name for name in names.names if re.fullmatch(r".* \(\d+\)", name) and name not in names.raw]
    more = checks.listed([f'"{name}"' for name in sorted(names.repeated)])
    return [f"names that come more than once: {more}; the later columns are {checks.listed(later)}"] if later else []


def _listed(names: Names) -> str:
    more = f" and {len(names.names) - MOST_LISTED} more" if len(names.names) > MOST_LISTED else ""
    return ", ".join(names.names[:MOST_LISTED]) + more
