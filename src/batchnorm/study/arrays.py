"""The data of the user's own: what a `--data` factory returns, made into one array of inputs and one of targets.

A model of the user's own may take several inputs, and numbers that must not be scaled: token ids, masks, lengths. Then
the columns of all inputs stand one after the other in `Dataset.x`, one row an example, as those of a table do, and
`Dataset.inputs` says what each of them is. All that a study does with rows (to split, to draw batches, to look at
layers) is the same for both.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from batchnorm.batch_size.memory import free_in_cgroup
from batchnorm.outputs import told
from batchnorm.study.data import FEWEST_PER_CLASS, DataError, Dataset, Task, checked
from batchnorm.study.foreign import blaming, seeded
from batchnorm.surgery.factory import call_factory

Array = NDArray[Any]
Kind = Literal["values", "unscaled", "integers", "mask"]

TARGETS = ("labels", "label", "targets", "target", "y")  # keys of a batch that is a dictionary
SHARE = 8  # of the free memory, one part for the data: every worker process has a copy, and trains on it
LARGEST_ID = 2**24  # float32, which batches are handed over in, holds integers up to here


@dataclass(frozen=True)
class Input:
    """One of the things that the user's model is called with.

    Attributes:
        name: Of the argument; "" for those that are called by position.
        shape: Of one row.
        kind: "values" are scaled; "unscaled" are floating-point numbers that are not, "integers" are int64, and "mask"
            is bool.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind

    @property
    def size(self) -> int:
        """How many columns it takes."""
        return math.prod(self.shape)

    def of(self, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what the model is handed of the columns (N, size): values and unscaled numbers in its own dtype."""
        types = {"integers": torch.int64, "mask": torch.bool}
        return columns.reshape(len(columns), *self.shape).to(types.get(self.kind, dtype))


class Batch(NamedTuple):
    """Inputs and targets as a factory, a dataset or a loader returns them.

    Attributes:
        inputs: By name; by "0", "1", … where they have none.
        targets: One row an example.
        named: Whether the model is called by these names.
    """

    inputs: dict[str, Array]
    targets: Array
    named: bool


def from_factory(name: str) -> Dataset:
    """Call a `--data` factory, with torch's and NumPy's global random numbers seeded, and return its dataset.

    Raises:
        DataError: in one line, whatever it returns that no study can run on, and whatever it raises.
    """
    with seeded(0), blaming("--data", name, "failed"):
        return from_arrays(name, call_factory("--data", name))


def from_arrays(name: str, returned: Any) -> Dataset:
    """Return a dataset from what a `--data` factory returned.

    Args:
        name: Of the factory, `module:factory`.
        returned: A pair (x, y) of arrays or tensors; x may be a tuple or a dictionary of several. Or a torch `Dataset`
            or `DataLoader` of such, which is read once.

    Raises:
        DataError: in one line, if it is none of these, or no study can run on it.
    """
    from batchnorm.study import loaders

    notes: list[str] = []
    batch_size = None
    if isinstance(returned, TorchDataset | DataLoader):
        batch, batch_size = loaders.read(name, returned, notes)
    else:
        batch = divided(name, returned)
    rows = {key: len(part) for key, part in batch.inputs.items()}
    if len(set(rows.values())) > 1:
        raise DataError(f"{owner(name)} must return inputs of as many rows each, got {listed(rows.values())}")
    y, task, classes = _target(name, batch.targets, notes)
    x, inputs = _packed(name, batch, notes)
    check_size(name, x.nbytes)
    count = next(iter(rows.values()))
    if batch_size is not None:
        notes.append(f"batch size {batch_size}, as that of the DataLoader, unless --batch-size says otherwise")
    dataset = Dataset(
        name, f"{count:,} examples of {_described(batch, inputs)} from {name}", x, y, task, classes, tuple(notes),
        inputs=inputs, batch_size=batch_size,
    )  # fmt: skip
    return checked(dataset)


def owner(name: str) -> str:
    """Return who returned the data, for messages: a factory, or Python code that handed them over.

    >>> owner("my_module:make_data"), owner("your data")
    ('`--data my_module:make_data`', 'your data')
    """
    return f"`--data {name}`" if ":" in name else name


def available() -> int:
    """Return the bytes of memory that are free."""
    return int(min(psutil.virtual_memory().available, free_in_cgroup()))


def check_size(name: str, size: int) -> None:
    """Refuse data that leave no memory to train on them.

    Raises:
        DataError: then.
    """
    if size > (most := available() // SHARE):
        raise DataError(
            f"{owner(name)} holds more than {most / 1e9:.2g} GB, an eighth of the free memory, and a study keeps it "
            "all in memory: return a part of it, by torch.utils.data.Subset for instance"
        )


def listed(values: Any) -> str:
    """Return values with "and" ahead of the last one.

    >>> listed([3, 4, 5])
    '3, 4 and 5'
    """
    *others, last = map(str, values)
    return f"{', '.join(others)} and {last}" if others else last


def divided(name: str, returned: Any) -> Batch:
    """Tell inputs from targets: (x, y), ((x, mask), y), (x, mask, y), ({"ids": …}, y) or {"ids": …, "labels": …}.

    Raises:
        DataError: if there are no inputs, or no targets.
    """
    if isinstance(returned, Mapping):
        keys = [key for key in TARGETS if key in returned]
        inputs = {str(key): value for key, value in returned.items() if key not in keys[:1]}
        if not keys or not inputs:
            got = f"got the keys {listed(map(repr, returned))}" if returned else "got an empty one"
            raise DataError(f'{owner(name)} returned a dictionary, which must hold inputs and "labels", {got}')
        return _batch(name, inputs, returned[keys[0]], named=True)
    pair = isinstance(returned, tuple | list) and len(returned) == 2
    if not pair and not (isinstance(returned, tuple | list) and len(returned) > 2 and all(map(_is_array, returned))):
        got = f"{len(returned)} of them" if isinstance(returned, tuple | list) else type(returned).__name__
        raise DataError(
            f"{owner(name)} must return a pair (x, y) of arrays, or a torch Dataset or DataLoader, got {got}"
        )
    *parts, targets = returned
    x = parts[0] if len(parts) == 1 else tuple(parts)
    if isinstance(x, Mapping) and x:
        return _batch(name, {str(key): value for key, value in x.items()}, targets, named=True)
    several = list[Any](x) if isinstance(x, tuple | list) and _are_inputs(x, targets) else [x]
    return _batch(name, {str(i): part for i, part in enumerate(several)}, targets, named=False)


def _are_inputs(x: Sequence[Any], targets: Any) -> bool:
    """Tell several inputs from a list of rows: they are arrays with as many rows as there are targets."""
    if not all(map(_is_array, x)):
        return False
    return isinstance(x, tuple) or (len(x) != len(targets) and all(len(part) == len(targets) for part in x))


def _is_array(part: Any) -> bool:
    return isinstance(part, np.ndarray | Tensor) and part.ndim > 0


def _batch(name: str, inputs: Mapping[str, Any], targets: Any, *, named: bool) -> Batch:
    return Batch({key: _array(name, part) for key, part in inputs.items()}, _array(name, targets), named)


def _array(name: str, part: Any) -> Array:
    """Return an array of numbers.

    Raises:
        DataError: if it is none.
    """
    try:
        if isinstance(part, Tensor):
            part = part.detach().cpu()
            part = part.float() if part.dtype == torch.bfloat16 else part
        array = np.asarray(part)
    except Exception as error:  # of whatever kind an object of the user's brings about
        way_out = "; pad sequences to one length, and return ((x, lengths), y)" if "inhomogeneous" in str(error) else ""
        raise DataError(f"{owner(name)} must return arrays: {told(error)}{way_out}") from None
    if array.ndim == 0 or array.dtype.kind not in "fiub":
        raise DataError(f"{owner(name)} must return arrays of numbers, got {array.dtype} of shape {array.shape}")
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _packed(name: str, batch: Batch, notes: list[str]) -> tuple[Array, tuple[Input, ...]]:
    """Return the inputs as one array, and what each of them is: nothing for a single one of numbers to scale."""
    parts = list(batch.inputs.items())
    if len(parts) == 1 and parts[0][1].ndim < 2:
        raise DataError(f"{owner(name)} must return x of rank 2 or more, got shape {parts[0][1].shape}")
    kinds: list[Kind] = [_kind(part, first=i == 0) for i, (_, part) in enumerate(parts)]
    if len(parts) == 1 and kinds[0] == "values" and not batch.named:
        x = parts[0][1]
        return (x if x.dtype.kind == "f" else x.astype(np.float32)), ()
    inputs: list[Input] = []
    for (key, part), kind in zip(parts, kinds, strict=True):
        if kind == "integers" and len(part) and max(abs(int(part.min())), abs(int(part.max()))) > LARGEST_ID:
            raise DataError(f"{owner(name)} returns integers beyond ±{LARGEST_ID:,}: number them from 0")
        inputs.append(Input(key if batch.named else "", part.shape[1:], kind))
    unscaled = [_called(i, key, batch) for i, (key, _) in enumerate(parts) if kinds[i] != "values"]
    notes.append(f"{listed(unscaled)} not scaled")
    precise = any(part.dtype == np.float64 for _, part in parts)
    columns = [part.reshape(len(part), -1) for _, part in parts]
    return np.concatenate(columns, axis=1, dtype=np.float64 if precise else np.float32, casting="unsafe"), tuple(inputs)


def _kind(part: Array, *, first: bool) -> Kind:
    """Return what an input is by its dtype: unsigned integers are pixels, signed ones are ids, counts or lengths."""
    if part.dtype.kind == "i":
        return "integers"
    if first or part.dtype.kind == "u":
        return "values"
    if part.dtype.kind == "b":
        return "mask"
    return "unscaled" if np.isin(part, (0.0, 1.0)).all() else "values"


def _called(i: int, key: str, batch: Batch) -> str:
    """Return what an input is called in words."""
    return repr(key) if batch.named else ("x" if len(batch.inputs) == 1 else f"input {i + 1}")


def _described(batch: Batch, inputs: Sequence[Input]) -> str:
    if len(batch.inputs) == 1:
        return f"shape {next(iter(batch.inputs.values())).shape[1:]}"
    words = {"values": "values", "unscaled": "values", "integers": "integers", "mask": "a mask"}
    return listed(
        f"{_called(i, key, batch)} ({words[part.kind]} of shape {part.shape})"
        for i, (key, part) in enumerate(zip(batch.inputs, inputs, strict=True))
    )


def _target(name: str, y: Array, notes: list[str]) -> tuple[Array, Task, tuple[str, ...]]:
    """Return targets, what they are, and the names of the classes."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim > 2 or y.size == 0:
        raise DataError(
            f"{owner(name)} must return y of shape (N,), or (N, K) for several values or labels a row, got {y.shape}"
        )
    if y.ndim == 2 and np.isin(y, (0, 1)).all():
        if not (y.sum(1) == 1).all():
            return y.astype(np.float32), "labels", tuple(f"label {i}" for i in range(y.shape[1]))
        notes.append(f"every row of y has one 1 among {y.shape[1]} numbers: read as classes")
        y = y.argmax(1)
    if y.dtype.kind == "f":
        return _values(name, y, notes), "regression", ()
    if y.ndim == 2:
        raise DataError(
            f"{owner(name)} returned integer y of shape {y.shape}: return floats for several values a row, or only 0 "
            "and 1 for several labels"
        )
    classes, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(classes) > 1 and counts.min() < FEWEST_PER_CLASS:
        raise DataError(
            f"{owner(name)} returned integer y, which are {len(classes)} classes of which the rarest has "
            f"{counts.min()} rows, and each needs {FEWEST_PER_CLASS}: return floats for values to predict"
        )
    return codes.astype(np.int64), "classification", tuple(str(c) for c in classes)


def _values(name: str, y: Array, notes: list[str]) -> Array:
    """Return values to predict as they are trained on."""
    if not np.isfinite(y).all():
        raise DataError(f"{owner(name)} returned y with NaN or infinite values; fill or drop those rows first")
    if (y == y[:1]).all():
        raise DataError(f"{owner(name)} returned y whose rows are all equal: there is nothing to predict")
    if np.isin(y, (0.0, 1.0)).all():
        notes.append("y holds 0 and 1 as floats, which are values to predict: return integers for classes")
    return y if y.dtype == np.float64 else y.astype(np.float32)


def unscaled_columns(inputs: Sequence[Input]) -> NDArray[np.bool_]:
    """Return for each column of `Dataset.x` whether it is handed to the user's model as it is."""
    return np.repeat([part.kind != "values" for part in inputs], [part.size for part in inputs])


def split_columns(x: Tensor, inputs: Sequence[Input], dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the arguments to call a model with, by position and by name, from rows (N, …) of `Dataset.x`."""
    if not inputs:
        return [x.to(dtype)], {}
    parts = x.split([part.size for part in inputs], dim=1)
    ready = [(part.name, part.of(columns, dtype)) for part, columns in zip(inputs, parts, strict=True)]
    return [value for key, value in ready if not key], {key: value for key, value in ready if key}


Scaler = Callable[[Array], tuple[Array, Array]]


def leaving(learn: Scaler, columns: NDArray[np.bool_]) -> Scaler:
    """Return a scaler that leaves some columns as they are: shift 0, factor 1."""

    def learned(rows: Array) -> tuple[Array, Array]:
        shift, factor = learn(rows)
        return np.where(columns, 0, shift).astype(shift.dtype), np.where(columns, 1, factor).astype(factor.dtype)

    return learned
