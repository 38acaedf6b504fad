"""Which data a study runs on, from what the command line names."""

from pathlib import Path
from typing import cast

from batchnorm.study.data import DataError, Dataset, Task, from_arrays
from batchnorm.surgery.factory import call_factory


def chosen_data(path: Path | None, target: str | None, task: str | None, factory: str | None) -> Dataset | None:
    """Return the table or the factory's arrays; None, which means the digits, where neither is named.

    Raises:
        DataError: in one line, if more than one source is named, or the one named cannot be studied.
    """
    if path is not None and factory is not None:
        raise DataError(f"name a table or --data, not both: got {path} and {factory}")
    if path is not None:
        from batchnorm.study.tables import table

        return table(path, target, cast(Task | None, task))
    if target is not None or task is not None:
        raise DataError("--target and --task belong to a table: name its file too, TABLE.csv --target COLUMN")
    return None if factory is None else from_arrays(factory, call_factory("--data", factory))
