"""keras.ops as the array namespace that the definition is written on: the few names that Keras spells otherwise."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras

from batchnorm.statistics import Array

ops: Any = keras.ops  # whose own types are too narrow: a size may be None, and a shape a tensor

float32, float64 = "float32", "float64"
_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}


def __getattr__(name: str) -> Any:
    """Return the function of keras.ops by that name."""
    return getattr(ops, name)


def finfo(dtype: Any) -> Any:
    """Return the size of a floating-point dtype of any backend, in `bits`."""
    return SimpleNamespace(bits=_BITS[keras.backend.standardize_dtype(dtype)])


def astype(x: Array, dtype: Any, *, copy: bool = True) -> Array:
    """Return x in another dtype."""
    del copy
    return ops.cast(x, dtype)


def asarray(values: Any, *, dtype: Any, device: Any = None) -> Array:
    """Return values as a tensor of the backend, where it puts them."""
    del device
    return ops.cast(ops.convert_to_tensor(values), dtype)


def zeros(shape: Sequence[Any], *, dtype: Any, device: Any = None) -> Array:
    """Return zeros."""
    del device
    return ops.zeros(shape, dtype=keras.backend.standardize_dtype(dtype))


def arange(stop: Any, *, device: Any = None) -> Array:
    """Return the integers from 0 to `stop` − 1."""
    del device
    return ops.arange(stop, dtype="int32")


def concat(arrays: Sequence[Array], *, axis: int) -> Array:
    """Return the arrays one after another along an axis."""
    return ops.concatenate(arrays, axis=axis)


def permute_dims(x: Array, axes: Sequence[int]) -> Array:
    """Return x with its axes in another order."""
    return ops.transpose(x, axes)


def full(shape: Sequence[Any], value: Any, *, dtype: Any, device: Any = None) -> Array:
    """Return an array of one value."""
    del device
    return ops.full(shape, value, dtype=keras.backend.standardize_dtype(dtype))
