"""Source code that reads and encodes a table exactly as a recipe does, with pandas alone."""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchnorm.study.literals import listed, literal

if TYPE_CHECKING:
    from batchnorm.study.tables.recipe import Column, Recipe

MANY = 30  # columns of plain numbers in a row, of which each would have a line of its own
DEFAULTS = [("sep", ","), ("skiprows", 0), ("encoding", "utf-8")]  # of pandas: no need to say them
READERS = {"csv": "pd.read_csv", "excel": "pd.read_excel"}
SAVED_FRAME = Path("table.parquet")  # beside the script, where the table is no file


def reading(recipe: "Recipe") -> str:
    """Return the body of a function that reads the file, given its `path`."""
    names = listed("names=[", [literal(name) for name in recipe.names], "]", 8).lstrip()
    options = [f"{key}={literal(value)}" for key, value in recipe.read.items() if (key, value) not in DEFAULTS]
    if recipe.reader in READERS:
        return listed(f"frame = {READERS[recipe.reader]}(", ["path", names, *options], ")", 4)
    if recipe.reader == "frame":
        lines = ["    # A data frame: save it there by frame.to_parquet(path)."]
        call = "pd.read_parquet(path)"
    else:
        lines = []
        source = {"parquet": "parquet.ParquetFile(path).read()", "feather": "feather.read_table(path)"}[recipe.reader]
        call = f"{source}.to_pandas(ignore_metadata=True)"
    names = listed("names = [", [literal(name) for name in recipe.names], "]", 4)
    return "\n".join([*lines, names, f"    return {call}.set_axis(names, axis=1)"])


def features(recipe: "Recipe") -> str:
    """Return the items of a list of features, a column a line; long rows of plain numbers share a dict of medians."""
    lines: list[str] = []
    for plain, group in groupby(_used(recipe), _is_plain):
        columns = list(group)
        if not plain or len(columns) < MANY:
            lines += [f"        {_feature(column)}," for column in columns]
            continue
        medians = [f"{literal(column.name)}: {literal(column.fill)}" for column in columns]
        opening = "*(number(frame[name], median) for name, median in {"
        lines.append(listed(opening, medians, "}.items()),", 8))
    return "\n".join(lines)


def target(recipe: "Recipe") -> str:
    """Return the expression of the values to predict, or of the names of the classes."""
    column = f"frame[{literal(recipe.target.name)}]"
    if recipe.target.kind != "number":
        return column if recipe.reader in READERS else f"text({column})"
    values = f"number({column}, np.nan{_spelling(recipe.target)})[:, 0]"
    return values if recipe.task == "regression" else f'pd.Series([f"{{value:.15g}}" for value in {values}])'


def needs(recipe: "Recipe") -> dict[str, Any]:
    """Return which functions the code of a recipe calls, and with which arguments."""
    spelled = [*_used(recipe), recipe.target]
    numbers = [column for column in spelled if column.kind == "number"]
    dates = {part for column in _used(recipe) for part in column.parts}
    return {
        "number": bool(numbers),
        "replace": any(column.replace for column in numbers),
        "missing": any(column.missing for column in spelled if column.kind in ("number", "categories")),
        "typed": recipe.reader not in READERS,
        "categories": any(column.kind == "categories" for column in _used(recipe)),
        "dates": dates,
        "angles": "season" in dates or "hour" in dates,
        "pyarrow": recipe.reader if recipe.reader in ("parquet", "feather") else "",
    }


def _used(recipe: "Recipe") -> "list[Column]":
    return [column for column in recipe.columns if column.kind != "dropped"]


def _is_plain(column: "Column") -> bool:
    return column.kind == "number" and not column.replace and not column.missing


def _feature(column: "Column") -> str:
    cells = f"frame[{literal(column.name)}]"
    if column.kind == "categories":
        known = [literal(category) for category in column.categories]
        return listed(f"categories({cells}, [", known, f"]{_spelling(column)})", 8).lstrip()
    if column.kind == "number":
        return f"number({cells}, {literal(column.fill)}{_spelling(column)})"
    written = literal(column.format or None)
    return f"date({cells}, {literal(column.fill)}, {written}, {literal(list(column.parts))})"


def _spelling(column: "Column") -> str:
    replace = f", replace={literal(list(column.replace))}" if column.replace and column.kind == "number" else ""
    return replace + (f", missing={literal(list(column.missing))}" if column.missing else "")
