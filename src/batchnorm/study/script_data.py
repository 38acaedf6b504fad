"""Where a training script finds its data, as source code: a table, the digits, or what a factory returns."""

import keyword
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.study import script_table
from batchnorm.study.data import Dataset
from batchnorm.study.literals import listed, literal, phrase
from batchnorm.surgery.factory import call_factory, named

Source = Literal["table", "digits", "factory", "caller"]

SUBJECT = 32  # characters of a name in the first line of a script
# Names that mean something else where a factory of such a name would be called.
TAKEN = {"Path", "example", "float", "importlib", "insert", "np", "str", "sys"}


class Factory(NamedTuple):
    """A function of the user's own: its module, its name, whether `import` can say them, and how it is called."""

    module: str
    name: str
    plain: bool
    call: str


def source(dataset: Dataset) -> Source:
    """Return where the data come from; "caller" if no script can get them, or not in the form that it needs."""
    if dataset.inputs or dataset.loss is not None:
        return "caller"
    if dataset.recipe is not None:
        return "table"
    if dataset.name == "digits":
        return "digits"
    return "factory" if ":" in dataset.name else "caller"


def factory(option: str, name: str, arguments: Mapping[str, int] | None = None) -> Factory:
    """Return how a script calls `module:factory`, by a string where its names are not Python's, with arguments."""
    module, _, attribute = name.partition(":")
    plain = attribute not in TAKEN and all(map(_is_name, [*module.split("."), attribute]))
    imported = f"importlib.import_module({literal(module)})"
    looked_up = f"{imported}.{attribute}" if _is_name(attribute) else f"getattr({imported}, {literal(attribute)})"
    function = attribute if plain else looked_up
    values = ", ".join(f"{argument}={value}" for argument, value in (arguments or {}).items())
    return Factory(module, attribute, plain, f"{function}({values})" if callable(named(option, name)) else function)


def described(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Return what the templates ask about the data.

    Args:
        dataset: Of any source but "caller".
        folder: Where the script will lie; files are named as seen from there.
    """
    kind, recipe = source(dataset), dataset.recipe
    answers: dict[str, Any] = {
        "source": kind,
        "task": dataset.task,
        "scaling": dataset.scaling,
        "outputs": dataset.outputs,
        "inputs": math.prod(dataset.x.shape[1:]),
        "shape": literal(dataset.x.shape[1:]),
        "flatten": dataset.x.ndim > 2,
        "where": seen_from(Path(), folder),
        "recipe": recipe,
        "subject": "handwritten digits" if kind == "digits" else f"the targets of {phrase(dataset.name)}",
        "classes": "",
        "pyarrow": "",
        "factory": literal(dataset.name),
        "data": factory("--data", dataset.name) if kind == "factory" and _is_pair(dataset) else None,
    }
    if recipe is None:
        return answers
    path = Path(recipe.path) if recipe.path else folder / script_table.SAVED_FRAME
    if dataset.task == "classification":
        answers["classes"] = listed("CLASSES = [", [literal(name) for name in recipe.classes], "]", 0)
    return answers | {
        "subject": f"{phrase(recipe.target.name, SUBJECT)} from {phrase(path.name, SUBJECT)}",
        "table": seen_from(path, folder),
        "reading": script_table.reading(recipe),
        "features": script_table.features(recipe),
        "target": script_table.target(recipe),
        **script_table.needs(recipe),
    }


def seen_from(path: Path, folder: Path) -> str:
    """Return the literal of a path as seen from a folder."""
    try:
        return literal(Path(os.path.relpath(path, folder)).as_posix())
    except ValueError:  # on another drive
        return literal(path.resolve().as_posix())


def _is_name(word: str) -> bool:
    return word.isidentifier() and not keyword.iskeyword(word)


def _is_pair(dataset: Dataset) -> bool:
    """Return whether the factory returns arrays (x, y) that need nothing but their classes numbered.

    It is called once more for that: a dataset does not say whether it was read from a `DataLoader`.
    """
    try:
        returned: Any = call_factory("--data", dataset.name)
    except (BatchNormError, SystemExit):
        return False
    if not isinstance(returned, Sequence) or len(returned) != 2:
        return False
    if not all(isinstance(part, np.ndarray | Tensor) for part in returned):
        return False
    return returned[1].ndim == dataset.y.ndim
