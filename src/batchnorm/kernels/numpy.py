"""The native kernel on NumPy's arrays."""

import numpy as xp

from batchnorm.kernels import native
from batchnorm.kernels.dense import Arrays, bound, kernel
from batchnorm.kernels.interface import Kernel
from batchnorm.layout import Plan
from batchnorm.statistics import Array


def _copied(array: Array, into: Array) -> Array:
    into[...] = array
    return into


def _strides(array: Array) -> tuple[int, ...]:
    if not array.flags.aligned:
        return ()  # which is like no other: it is copied
    return tuple(s // array.itemsize for s in array.strides)


def _contiguous(array: Array) -> Array:
    return xp.require(array, requirements=("C", "A"))


KERNEL = kernel(
    xp,
    bound(
        Arrays(
            xp,
            address=lambda a: a.__array_interface__["data"][0],
            strides=_strides,
            dtype=lambda a: a.dtype.name,
            empty=lambda shape, _, dtype: xp.empty(shape, dtype=dtype),
            empty_like=xp.empty_like,
            copied=_copied,
            contiguous=_contiguous,
        )
    ),
)


def serve(x: Array, plan: Plan, residual: Array | None = None, weights: Array | None = None) -> Kernel | str:
    """Return the native kernel, or why it does not serve these arrays."""
    library = native.load()
    if isinstance(library, str):
        return library
    if x.dtype.name not in native.DTYPES or not x.dtype.isnative:
        return f"the native kernel has no {x.dtype}"
    if not x.flags.aligned:
        return "the input is not aligned to its elements (`.copy()` is)"
    if residual is not None and residual.dtype != x.dtype:
        return f"the residual is {residual.dtype}, the input {x.dtype}"
    features = plan.kept_shape(x.shape)
    lies = native.arrangement(x.shape, _strides(x), features, native.apart(features, weights))
    return lies if isinstance(lies, str) else KERNEL
