"""The native kernel on NumPy's arrays."""

import numpy as xp

from batchnorm.kernels.dispatch import Backend
from batchnorm.kernels.dispatch import register as register_backends
from batchnorm.kernels.interface import Facts
from batchnorm.kernels.native import abi
from batchnorm.kernels.native.calls import Arrays, NativeKernel
from batchnorm.kernels.native.memory import layout_of
from batchnorm.statistics import Array


def _copied(array: Array, into: Array) -> Array:
    into[...] = array
    return into


def strides(array: Array) -> tuple[int, ...]:
    """Return the strides of an array in elements; of one that is not aligned (), which are like no other's."""
    if not array.flags.aligned:
        return ()
    return tuple(s // array.itemsize for s in array.strides)


def _contiguous(array: Array) -> Array:
    return xp.require(array, requirements=("C", "A"))


KERNEL = NativeKernel(
    Arrays(
        xp,
        address=lambda a: a.__array_interface__["data"][0],
        strides=strides,
        dtype=lambda a: a.dtype.name,
        empty=lambda shape, _, dtype: xp.empty(shape, dtype=dtype),
        empty_like=xp.empty_like,
        copied=_copied,
        contiguous=_contiguous,
    )
)


def supports(facts: Facts) -> str | None:
    """Return why the native kernel does not serve a call; None where it does."""
    library = abi.load()
    if isinstance(library, str):
        return library
    if facts.dtype not in abi.DTYPES:
        return f"the native kernel has no {facts.dtype}"
    if not facts.strides:
        return "the input is not aligned to its elements (`.copy()` is)"
    if facts.residual not in (None, facts.dtype):
        return f"the residual is {facts.residual}, the input {facts.dtype}"
    layout = layout_of(facts)
    return layout if isinstance(layout, str) else None


def register() -> None:
    """Register the kernel for NumPy's arrays."""
    register_backends(xp, Backend("native", "cpu", supports, lambda _: KERNEL))
