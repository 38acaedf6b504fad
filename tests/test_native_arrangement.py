"""How an array lies in memory, in the terms of the native kernel: for any shape, order of axes, features and groups."""

import ctypes
import math
from collections.abc import Sequence
from itertools import groupby, product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from batchnorm.kernels.native import abi
from batchnorm.kernels.native.memory import MemoryLayout, memory_layout, weight_group_axis
from batchnorm.kernels.native.numpy import KERNEL
from batchnorm.layout import Axes
from kernel_calls import Called, eager
from tolerance import assert_close


@st.composite
def lying(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], frozenset[int]]:
    """Draw a shape, its axes in the order of memory, and those kept."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    order = tuple(draw(st.permutations(range(len(shape)))))
    return shape, order, draw(st.frozensets(st.sampled_from(range(len(shape)))))


def strides_of(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    strides, step = [0] * len(shape), 1
    for i in reversed(order):
        strides[i], step = step, step * shape[i]
    return tuple(strides)


def can_be_served(shape: Sequence[int], order: Sequence[int], kept: frozenset[int], apart: int | None) -> bool:
    """Return whether the kept axes lie in their order and in two places; of which one is alone, the first."""
    axes = [i for i in order if shape[i] > 1]
    mine = [i for i in axes if i in kept]
    places = [list(run) for is_kept, run in groupby(axes, lambda i: i in kept) if is_kept]
    if mine != sorted(mine):
        return False
    if apart is None:
        return len(places) <= 2
    rest = [i for i in axes if i != apart]
    others = [run for is_kept, run in groupby(rest, lambda i: i in kept) if is_kept]
    first = not mine or mine[0] == apart
    between = len(places) == 2 or len(mine) == 1 or len(places[0]) == len(mine)
    return first and between and len(others) <= 1


def view(x: np.ndarray, layout: MemoryLayout) -> np.ndarray:
    """Return the elements as they follow one another in memory, in the library's shape."""
    return x.transpose(layout.order).reshape(layout.sizes)


@example(case=((2, 3, 4), (2, 1, 0), frozenset({0, 2})))  # in the order of memory they are (2, 0)
@given(case=lying())
def test_sums_of_features_are_those_over_three_of_five_axes(
    case: tuple[tuple[int, ...], tuple[int, ...], frozenset[int]],
) -> None:
    shape, order, kept = case
    features = tuple(n if i in kept else 1 for i, n in enumerate(shape))
    layout = memory_layout(shape, strides_of(shape, order), features)
    assert isinstance(layout, MemoryLayout) == can_be_served(shape, order, kept, None)
    if isinstance(layout, MemoryLayout):
        x = np.arange(math.prod(shape), dtype=np.int64).reshape(shape) ** 2
        sums = x.sum(tuple(i for i in range(len(shape)) if i not in kept))
        np.testing.assert_array_equal(view(x, layout).sum((0, 2, 4)).ravel(), sums.ravel())


@example(case=((2, 3, 4), (0, 1, 2), frozenset({0, 1})), which=1)  # the groups within another axis of features
@example(case=((4, 3, 2), (0, 1, 2), frozenset({1, 2})), which=0)  # the groups beside the channels
@given(case=lying(), which=st.integers(0, 4))
def test_weights_go_along_every_place_but_that_of_channels(
    case: tuple[tuple[int, ...], tuple[int, ...], frozenset[int]], which: int
) -> None:
    shape, order, kept = case
    groups = dict(enumerate(sorted(i for i in kept if shape[i] > 1))).get(which)
    features = tuple(n if i in kept else 1 for i, n in enumerate(shape))
    varies = tuple(n if i not in kept or i == groups else 1 for i, n in enumerate(shape))
    w = np.arange(1, 1 + math.prod(varies), dtype=np.int64).reshape(varies)
    assert weight_group_axis(features, w.shape) == groups
    layout = memory_layout(shape, strides_of(shape, order), features, groups)
    assert isinstance(layout, MemoryLayout) == can_be_served(shape, order, kept, groups)
    if isinstance(layout, MemoryLayout):
        x = np.arange(math.prod(shape), dtype=np.int64).reshape(shape) ** 2
        outer, in_groups, rows, _, inner = layout.sizes
        reduced = tuple(n if i in layout.weight_axes else 1 for i, n in enumerate(shape))
        along = np.broadcast_to(w, reduced).transpose(layout.order).reshape(outer, in_groups, rows, 1, inner)
        expected = (x * w).sum(tuple(i for i in range(len(shape)) if i not in kept))
        np.testing.assert_array_equal((view(x, layout) * along).sum((0, 2, 4)).ravel(), expected.ravel())


@example(case=((3, 2, 4), (2, 0, 1), frozenset({1})), weighted=True, seed=0)  # samples in another order than the axes
@given(case=lying(), weighted=st.booleans(), seed=st.integers(0, 9))
def test_moments_equal_those_of_the_eager_kernel(
    case: tuple[tuple[int, ...], tuple[int, ...], frozenset[int]], weighted: bool, seed: int
) -> None:
    shape, order, kept = case
    assume(kept and can_be_served(shape, order, kept, None))
    rng, axes = (
        np.random.default_rng(seed),
        Axes(tuple(sorted(kept)), tuple(i for i in range(len(shape)) if i not in kept)),
    )
    x = rng.standard_normal([shape[i] for i in order]).transpose(np.argsort(order))
    along = tuple(1 if i in kept else n for i, n in enumerate(shape))
    weights = rng.uniform(0.5, 2.0, along) if weighted else None
    found, expected = (one.moments(x, axes, weights) for one in (Called(KERNEL, np), eager(np)))
    assert_close(found.count, expected.count, "float64", 64.0)
    assert_close(found.mean + found.mean_low, expected.mean + expected.mean_low, "float64", 64.0)
    assert_close(found.m2, expected.m2, "float64", 64.0)


@pytest.mark.parametrize(
    ("shape", "order", "kept", "sizes"),
    [
        ((70001, 64, 300, 301), (0, 1, 2, 3), (1,), (1, 70001, 64, 90300)),
        ((70001, 64, 300, 301), (0, 2, 3, 1), (1,), (1, 70001 * 90300, 64, 1)),
        ((1 << 33, 3), (0, 1), (1,), (1, 1 << 33, 3, 1)),
        ((3, 1 << 33), (0, 1), (1,), (1, 3, 1 << 33, 1)),
        ((50_000, 2, 64, 50_000), (0, 1, 2, 3), (1, 2), (1, 50_000, 128, 50_000)),
        ((50_000, 8, 64, 50_000), (1, 0, 2, 3), (1, 2), (8, 50_000, 64, 50_000)),
    ],
)
def test_more_elements_than_31_bits(shape: Any, order: Any, kept: Any, sizes: Any) -> None:
    features = tuple(n if i in kept else 1 for i, n in enumerate(shape))
    layout = memory_layout(shape, strides_of(shape, order), features)
    assert isinstance(layout, MemoryLayout)
    outer, groups, rows, channels, inner = layout.sizes
    assert (groups, outer * rows, channels, inner) == sizes
    assert math.prod(layout.sizes) > 1 << 31
    assert 16 * layout.bits_size("float32") >= math.prod(layout.sizes)
    call = layout.enter(abi.Call())
    assert (call.outer, call.groups, call.rows, call.channels, call.inner) == layout.sizes  # it holds them


@pytest.mark.parametrize("dtype", abi.DTYPES)
def test_masks_are_as_many_as_the_library_says(dtype: str) -> None:
    library = abi.load()
    assert not isinstance(library, str), library
    size = library.handle.bn_bits_size
    size.restype, sizes = ctypes.c_int64, (1, 2, 7, 8, 9, 15, 16, 17, 33)
    for outer, groups, rows, channels, inner in product((1, 3), (1, 2), (1, 5), sizes, sizes):
        shape = outer, groups, rows, channels, inner
        layout = MemoryLayout(shape, (), frozenset())
        call = layout.enter(abi.Call(dtype=abi.DTYPES[dtype]))
        assert layout.bits_size(dtype) == size(ctypes.byref(call)), shape


@pytest.mark.parametrize("strides", [(7, 1), (1, 5), (6, 2), (0, 1), (-6, 1), (6, -1), (1, 1)])
def test_what_is_not_dense_is_refused(strides: tuple[int, int]) -> None:
    assert "not dense" in str(memory_layout((4, 6), strides, (1, 6)))
