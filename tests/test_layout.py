"""From `axis` and a rank to a plan, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm.errors import ArgumentError, ShapeError
from batchnorm.layout import axes_of


@pytest.mark.parametrize(
    ("shape", "axis", "reduced", "count", "kept_shape", "parameter_shape"),
    [
        ((8, 3), 1, (0,), 8, (1, 3), (3,)),
        ((8, 3, 5), 1, (0, 2), 40, (1, 3, 1), (3,)),
        ((8, 5, 3), -1, (0, 1), 40, (1, 1, 3), (3,)),
        ((2, 3, 5, 7), 1, (0, 2, 3), 70, (1, 3, 1, 1), (3,)),
        ((2, 5, 7, 3), -1, (0, 1, 2), 70, (1, 1, 1, 3), (3,)),
        ((2, 3, 5, 7), 0, (1, 2, 3), 105, (2, 1, 1, 1), (2,)),
        ((2, 3, 5, 7), (1, 3), (0, 2), 10, (1, 3, 1, 7), (1, 3, 1, 7)),
        ((2, 3, 5, 7), [-1, 1], (0, 2), 10, (1, 3, 1, 7), (1, 3, 1, 7)),
        ((2, 3, 5, 7), (-3,), (0, 2, 3), 70, (1, 3, 1, 1), (3,)),
        ((2, 3, 2, 3, 2), 1, (0, 2, 3, 4), 24, (1, 3, 1, 1, 1), (3,)),
        ((0, 3, 4), 1, (0, 2), 0, (1, 3, 1), (3,)),
    ],
)
def test_plan(shape, axis, reduced, count, kept_shape, parameter_shape) -> None:
    layout = axes_of(len(shape), axis)
    assert layout.reduced == reduced
    assert layout.count(shape) == count
    assert layout.kept_shape(shape) == kept_shape
    assert layout.parameter_shape(shape) == parameter_shape


@given(data=st.data(), shape=st.lists(st.integers(1, 9), min_size=2, max_size=6))
def test_kept_and_reduced_share_out_the_axes(data: st.DataObject, shape: list[int]) -> None:
    rank = len(shape)
    kept = data.draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank - 1, unique=True))
    written = [a - rank if data.draw(st.booleans()) else a for a in kept]
    layout = axes_of(rank, written)
    assert layout.kept == tuple(sorted(kept))
    assert sorted(layout.kept + layout.reduced) == list(range(rank))
    assert layout.count(shape) * math.prod(layout.kept_shape(shape)) == math.prod(shape)


@pytest.mark.parametrize(
    ("axis", "got"), [(None, "None"), (1.0, "1.0"), ((), "()"), ("1", "'1'"), ((0, 1.5), "(0, 1.5)"), ((True,), "True")]
)
def test_an_axis_that_is_no_axis_is_refused(axis, got: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        axes_of(3, axis)
    assert str(caught.value).startswith("`axis` must be an int or a non-empty sequence of ints, the axes to keep, got ")
    assert got in str(caught.value)


@pytest.mark.parametrize(
    ("rank", "axis", "error", "message"),
    [
        (2, 2, ShapeError, "`axis` must lie in [-2, 1] for an input of rank 2, got 2"),
        (3, -4, ShapeError, "`axis` must lie in [-3, 2] for an input of rank 3, got -4"),
        (4, (1, 4), ShapeError, "`axis` must lie in [-4, 3] for an input of rank 4, got 4"),
        (4, (1, -3), ArgumentError, "`axis` must not name an axis twice, got (1, -3) for an input of rank 4"),
        (1, 0, ShapeError, "`axis` must leave an axis to reduce over, got (0,) for an input of rank 1"),
        (2, (0, 1), ShapeError, "`axis` must leave an axis to reduce over, got (0, 1) for an input of rank 2"),
    ],
)
def test_an_axis_that_does_not_fit_the_rank_is_refused(rank: int, axis, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        axes_of(rank, axis)
    assert str(caught.value) == message
