"""Small tables as the tests write them: two columns of numbers, a target of two classes, and whatever is changed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.study.data import Dataset
from batchnorm.study.tables import Profile, inspect
from batchnorm.study.tables.recipe import Column, encode, read

ROWS = 60
_random = np.random.default_rng(0)
A, B = (_random.normal(size=ROWS).round(3) for _ in range(2))
Y = _random.permutation(np.arange(ROWS) % 2)
NUMBERS = np.stack([A, B], axis=1)


def columns(**changed: Sequence[Any] | NDArray[Any]) -> dict[str, Sequence[Any] | NDArray[Any]]:
    """Return the columns a, b and y, with some in place of them or beside them: the target stays the last."""
    return (
        {"a": A, "b": B} | {name: cells for name, cells in changed.items() if name != "y"} | {"y": changed.get("y", Y)}
    )


def csv(
    table: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None, separator: str = ",", *, header: bool = True
) -> str:
    """Return a table as text; cells with the separator in them are quoted."""
    table = columns() if table is None else table
    rows = [[str(cell) for cell in row] for row in zip(*table.values(), strict=True)]
    quoted = [[f'"{cell}"' if separator in cell else cell for cell in row] for row in rows]
    lines = [*([list(table)] if header else []), *quoted]
    return "\n".join(separator.join(line) for line in lines) + "\n"


def profiled(
    folder: Path, content: str | bytes, target: str | None = "y", name: str = "t.csv", **options: Any
) -> Profile:
    """Write a file and return its profile; whatever is made a dataset has to be what its recipe makes of the file."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    profile = inspect(path, target, **options)
    if profile.dataset is not None:
        assert_recipe_repeats(profile.dataset)
    return profile


def assert_recipe_repeats(dataset: Dataset) -> None:
    """Assert that reading the file again, by the recipe alone, gives the same arrays."""
    assert dataset.recipe is not None
    x, y = encode(dataset.recipe, read(dataset.recipe))
    assert x.dtype == np.float64
    assert np.array_equal(x, dataset.x)
    assert np.array_equal(y, dataset.y)


def dataset_of(profile: Profile) -> Dataset:
    """Return the dataset of a profile in which nothing stands against one."""
    assert profile.problems == ()
    assert profile.dataset is not None
    return profile.dataset


def column(profile: Profile, name: str) -> Column:
    return next(column for column in profile.columns if column.name == name)
