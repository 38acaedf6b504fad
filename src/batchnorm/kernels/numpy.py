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
    return tuple(s // array.itemsize for s in array.strides)


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
            contiguous=xp.ascontiguousarray,
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
    if residual is not None and residual.dtype != x.dtype:
        return f"the residual is {residual.dtype}, the input {x.dtype}"
    features = plan.kept_shape(x.shape)
    lies = native.arrangement(x.shape, _strides(x), features, native.apart(features, weights))
    return lies if isinstance(lies, str) else KERNEL
