"""Which data a study runs on, from what the command line names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from batchnorm.study.data import DataError, Dataset, Task


def chosen_data(
    path: Path | None,
    target: str | None,
    task: str | None,
    factory: str | None,
    *,
    drop: Sequence[str] = (),
    no_header: bool = False,
) -> Dataset | None:
    """Return the table or the factory's arrays; None, which means the digits, where neither is named.

    Args:
        path: The table's file.
        target: Its column to predict, by name or place.
        task: What the target is, if that is not to be decided by its values.
        factory: `module:function` that returns arrays, in place of a table.
        drop: The table's columns to leave out, by name or place.
        no_header: Whether the table's first row is a row like the others, whatever it looks like.

    Raises:
        DataError: in one line, if more than one source is named, or the one named cannot be studied.
    """
    if path is not None and factory is not None:
        raise DataError(f"name a table or --data, not both: got {path} and {factory}")
    if path is not None:
        from batchnorm.study.tables import table

        return table(path, target, cast(Task | None, task), drop=drop, header=False if no_header else None)
    belonging = {"--target": target, "--task": task, "--drop": drop, "--no-header": no_header}
    if named := [option for option, value in belonging.items() if value]:
        raise DataError(f"{' and '.join(named)} belong to a table: name its file too, TABLE.csv --target COLUMN")
    if factory is None:
        return None
    from batchnorm.study.arrays import from_factory

    return from_factory(factory)


def as_dataset(data: Any, target: str | int | None = None, task: Task | None = None) -> Dataset | None:
    """Return what Python code hands over as a dataset; None stays None, and means the digits.

    Args:
        data: A DataFrame, arrays or tensors (x, y), or whatever else a `--data` factory may return.
        target: The column of a DataFrame to predict, by name or place.
        task: What that column is; None: inferred.

    Raises:
        DataError: in one line, if no study can run on it, or a target is named where there are no columns.
    """
    if hasattr(data, "columns"):
        from batchnorm.study.tables import from_frame

        if target is None:
            raise DataError(
                f"name the column to predict, run(frame, target=…); it has: {', '.join(map(str, data.columns))}"
            )
        return from_frame(data, target, task)
    if target is not None or task is not None:
        raise DataError(f"target and task belong to a DataFrame, got {type(data).__name__}")
    if data is None or isinstance(data, Dataset):
        return data
    from batchnorm.study.arrays import from_arrays

    return from_arrays("your data", data)
