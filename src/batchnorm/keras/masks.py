"""Masks as weights of samples: those that a call is given, and those that layers such as `Embedding` hand on."""

from collections.abc import Callable
from typing import Any

import keras

from batchnorm.core.plan import working_dtype
from batchnorm.errors import ArgumentError
from batchnorm.keras import namespace as xp
from batchnorm.keras.namespace import ops
from batchnorm.layout import Axes, weights_shape
from batchnorm.statistics import Array, is_number, sizes


def _handed_on(inputs: Array, mask: Array) -> bool:
    """Return whether a mask came with the inputs from the layer before, and is no argument of the call."""
    return getattr(inputs, "_keras_mask", None) is mask


def _along_first_axes(mask: Array, x: Array, layout: Axes) -> Array | None:
    """Return a mask of the first axes of x, (N,) or (N, L), in the rank of x.

    Returns None where one of these axes holds features: such a mask tells features apart, not samples, and says of no
    sample whether it is there.
    """
    own = sizes(mask, xp)
    if len(own) > len(x.shape) or any(i in layout.kept for i in range(len(own))):
        return None
    return ops.reshape(mask, (*own, *[1] * (len(x.shape) - len(own))))


def weights_of(given: Any, inputs: Array, x: Array, layout: Axes, readable: Callable[[Array], bool]) -> Array | None:
    """Return a mask in the rank of x, 1 on its axes of features, in the working precision.

    Returns None without a mask, or where one that was handed on does not apply.

    Args:
        given: The mask: bool or numbers, broadcastable to x without its axes of features; or None.
        inputs: What the layer was called with, on which the layer before has left its mask.
        x: Input.
        layout: Of x.
        readable: Whether the values of a tensor can be looked at now.

    Raises:
        ShapeError: if the mask does not fit x.
        ArgumentError: if it holds numbers that are negative or not finite, as far as they can be read.
    """
    if given is None:
        return None
    mask: Any = ops.convert_to_tensor(given)
    if _handed_on(inputs, given):
        mask = _along_first_axes(mask, x, layout)
    return None if mask is None else _in_full_rank(mask, x, layout, readable)


def _in_full_rank(mask: Array, x: Array, layout: Axes, readable: Callable[[Array], bool]) -> Array:
    full = weights_shape(mask.shape, x.shape, layout, name="mask")
    known = iter([n for n in sizes(mask, xp) if not is_number(n) or n != 1])
    shape = tuple(1 if n == 1 else next(known) for n in full)
    weights = xp.astype(ops.reshape(mask, shape), working_dtype(x.dtype, xp))
    if None in tuple(weights.shape):  # what turns out to be 1 cannot be told from what is not
        every = tuple(n if i in layout.reduced else 1 for i, n in enumerate(sizes(x, xp)))
        weights = ops.broadcast_to(weights, every)
    numbers = keras.backend.standardize_dtype(mask.dtype) != "bool" and readable(weights)
    if numbers and not bool(ops.all(ops.logical_and(weights >= 0.0, ops.isfinite(weights)))):
        raise ArgumentError(
            "`mask` must be bool, or weights that are finite and ≥ 0, got some that are not "
            "(an additive mask of 0 and −inf: `mask == 0`)"
        )
    return weights
