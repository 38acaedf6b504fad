"""How a dense array lies in memory, in the terms of the native library."""

import math
from dataclasses import dataclass
from functools import lru_cache

from batchnorm.kernels.interface import Facts
from batchnorm.kernels.native.abi import Call

_REMEMBERED = 4096  # layouts
_GROUPS, _CHANNELS, _OF_FEATURES = 1, 3, (1, 3)  # places in a layout's sizes
Sizes = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class MemoryLayout:
    """How a dense array lies in memory.

    Attributes:
        sizes: (outer, groups, rows, channels, inner): features are (groups, channels), the others are reduced.
        order: All axes in the order of memory.
        weight_axes: The axes along which weights of samples may differ: the reduced ones and the groups.
    """

    sizes: Sizes
    order: tuple[int, ...]
    weight_axes: frozenset[int]

    def enter(self, call: Call) -> Call:
        """Write the sizes into a call, and return it."""
        call.outer, call.groups, call.rows, call.channels, call.inner = self.sizes
        return call

    def bits_size(self, dtype: str) -> int:
        """Return how many 16-bit masks hold the sign of each element: a vector each, some not full."""
        outer, groups, rows, channels, inner = self.sizes
        lanes, lines = 8 if dtype == "float64" else 16, outer * groups * rows
        vectors = channels * (inner // lanes + 2 * (inner % lanes > 0)) if inner > 1 else -(-channels // lanes)
        return lines * vectors


@lru_cache(maxsize=_REMEMBERED)
def memory_layout(
    shape: tuple[int, ...], strides: tuple[int, ...], features: tuple[int, ...], group_axis: int | None = None
) -> MemoryLayout | str:
    """Return how an array lies, or why the library does not serve it.

    Args:
        shape: Of the array.
        strides: In elements.
        features: The kept shape, 1 on reduced axes.
        group_axis: An axis of features that must be one of groups: weights of samples differ along it.

    >>> memory_layout((32, 64, 56, 56), (200704, 3136, 56, 1), (1, 64, 1, 1)).sizes
    (1, 1, 32, 64, 3136)
    >>> memory_layout((32, 64, 56, 56), (200704, 1, 3584, 64), (1, 64, 1, 1)).sizes  # channels_last
    (1, 1, 100352, 64, 1)
    >>> memory_layout((4, 6), (7, 1), (1, 6))
    'the input is not dense in memory (`.contiguous()` makes it so)'
    """
    if math.prod(shape) == 0:
        return "the input is empty"
    order = sorted(range(len(shape)), key=lambda i: (-strides[i], i))
    axes, expected = [i for i in order if shape[i] > 1], 1
    for i in reversed(axes):
        if strides[i] != expected:
            return "the input is not dense in memory (`.contiguous()` makes it so)"
        expected *= shape[i]
    kept = [i for i in axes if features[i] > 1]
    if kept != sorted(kept):
        return "its axes of features lie in another order in memory (`.contiguous()` mends it)"
    sizes, place, before, weight_axes = [1, 1, 1, 1, 1], 5, -1, set[int]()
    for i in reversed(axes):  # from the inside out, into the innermost place of its kind
        is_kept = features[i] > 1
        if i == group_axis:
            place = _GROUPS if place > _GROUPS else -1
        elif place > 4 or (place in _OF_FEATURES) != is_kept or before == group_axis:
            place = next((p for p in range(place - 1, -1, -1) if (p in _OF_FEATURES) == is_kept), -1)
        if place < 0:
            return "its axes of features lie in more than two places in memory"
        sizes[place] *= shape[i]
        before = i
        if place != _CHANNELS:
            weight_axes.add(i)
    outer, groups, rows, channels, inner = sizes
    return MemoryLayout((outer, groups, rows, channels, inner), tuple(order), frozenset(weight_axes))


def layout_of(facts: Facts) -> MemoryLayout | str:
    """Return how the input of a call lies, or why the library does not serve it."""
    features = facts.statistics_shape
    return memory_layout(facts.shape, facts.strides, features, weight_group_axis(features, facts.weights))


def weight_group_axis(features: tuple[int, ...], weights: tuple[int, ...] | None) -> int | None:
    """Return the axis of features along which weights of this shape differ: that of groups; None where none does."""
    if weights is None:
        return None
    return next((i for i, n in enumerate(features) if n > 1 and weights[i] > 1), None)
