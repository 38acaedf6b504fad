"""Which axes are kept and which are reduced, from `axis` and the rank of an input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from batchnorm.errors import ArgumentError, ShapeError

Axis = int | Sequence[int]


@dataclass(frozen=True)
class Axes:
    """The axes of one input rank, sorted and non-negative.

    Between the two passes over the data every per-feature array has the *kept shape*: the input's rank, with 1 on the
    reduced axes. It broadcasts against the input as it is, and no pass needs to know where the features lie.

    Attributes:
        kept: The axes of features, and of groups.
        reduced: The axes that moments are taken over.
        group_axis: Of virtual batches; None where the batch is one.

    >>> p = axes_of(4, axis=1)
    >>> p.kept, p.reduced, p.count((32, 64, 56, 56)), p.kept_shape((32, 64, 56, 56))
    ((1,), (0, 2, 3), 100352, (1, 64, 1, 1))
    """

    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    group_axis: int | None = None

    @property
    def batch_axis(self) -> int:
        """Return the axis along which virtual batches split: the first that is reduced."""
        return self.reduced[0]

    def grouped(self) -> "Axes":
        """Return the axes once the batch axis is split into (rows, groups): an axis more, kept, behind the batch axis.

        >>> axes_of(3, axis=-1).grouped()
        Axes(kept=(1, 3), reduced=(0, 2), group_axis=1)
        """
        at = self.batch_axis + 1
        kept, reduced = (tuple(i + (i >= at) for i in axes) for axes in (self.kept, self.reduced))
        return Axes(tuple(sorted((*kept, at))), reduced, at)

    def count(self, shape: Sequence[int]) -> int:
        """Return N, the number of values per feature."""
        return math.prod([shape[i] for i in self.reduced])

    def kept_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return `shape` with 1 on every reduced axis."""
        return tuple(n if i in self.kept else 1 for i, n in enumerate(shape))

    def feature_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the kept shape with 1 on the axis of groups too: that of γ and β, which all groups share."""
        return tuple(n if i in self.kept and i != self.group_axis else 1 for i, n in enumerate(shape))

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of γ, β and the running statistics: (C,) for one axis, the kept shape for several."""
        features = [i for i in self.kept if i != self.group_axis]
        if len(features) == 1:
            return (shape[features[0]],)
        return tuple(n for i, n in enumerate(self.feature_shape(shape)) if i != self.group_axis)


def broadcasts(shape: Sequence[int | None], to: Sequence[int | None]) -> bool:
    """Return whether an array of `shape` broadcasts to the shape `to`, and not beyond it; None is any size.

    >>> broadcasts((1, 4), (2, 3, 4)), broadcasts((2, 1), (2, 3)), broadcasts((2,), (2, 3)), broadcasts((2, 3), (1, 3))
    (True, True, False, False)
    """
    return len(shape) <= len(to) and all(
        n in (1, m) or n is None or m is None for n, m in zip(shape[::-1], to[::-1], strict=False)
    )


def weights_shape(own: Sequence[Any], shape: Sequence[Any], axes: Axes, *, name: str = "weights") -> tuple[Any, ...]:
    """Return the shape of weights of samples in the rank of an input: 1 on its axes of features.

    Args:
        own: The shape they have: of the input without its axes of features, or in full rank with 1 there.
        shape: Of the input; None is a size not known yet.
        axes: Of the input.
        name: What they are called.

    Raises:
        ShapeError: if they do not broadcast to the input's shape without its axes of features.

    >>> weights_shape((8, 20), (8, 20, 64), axes_of(3, axis=-1))
    (8, 20, 1)
    """
    wanted, given = [n for i, n in enumerate(shape) if i in axes.reduced], list(own)
    if len(given) == len(shape) and all(given[i] == 1 for i in axes.kept):
        given = [given[i] for i in axes.reduced]
    if not broadcasts(given, wanted):
        raise ShapeError(
            f"`{name}` must broadcast to {tuple(wanted)}, the input's shape {tuple(shape)} without its axes of "
            f"features, got shape {tuple(own)} (one weight a sample: shape "
            f"{tuple(n if i == 0 else 1 for i, n in enumerate(wanted))})"
        )
    left = iter([1] * (len(wanted) - len(given)) + given)
    return tuple(next(left) if i in axes.reduced else 1 for i in range(len(shape)))


def normalise_axis(axis: Axis) -> tuple[int, ...]:
    """Return `axis` as a tuple of ints, as it was written (negatives stay).

    Raises:
        ArgumentError: if `axis` is neither an int nor a non-empty sequence of ints.
    """
    axes = (axis,) if isinstance(axis, Integral) else tuple(axis) if isinstance(axis, Sequence) else ()
    if not axes or any(not isinstance(a, Integral) or isinstance(a, bool) for a in axes):
        raise ArgumentError(f"`axis` must be an int or a non-empty sequence of ints, the axes to keep, got {axis!r}")
    return tuple(map(int, axes))


def _axes(rank: int, axes: tuple[int, ...]) -> Axes:
    for a in axes:
        if not -rank <= a < rank:
            raise ShapeError(f"`axis` must lie in [{-rank}, {rank - 1}] for an input of rank {rank}, got {a}")
    kept = tuple(sorted(a % rank for a in axes))
    if len(set(kept)) != len(kept):
        raise ArgumentError(f"`axis` must not name an axis twice, got {axes} for an input of rank {rank}")
    reduced = tuple(i for i in range(rank) if i not in kept)
    if not reduced:
        raise ShapeError(f"`axis` must leave an axis to reduce over, got {axes} for an input of rank {rank}")
    return Axes(kept, reduced)


# The usual ones are made here: a cache that fills while a compiler traces makes it trace again.
_USUAL: dict[tuple[int, tuple[int, ...]], Axes] = {
    (rank, (axis,)): _axes(rank, (axis,)) for rank in range(2, 7) for axis in range(-rank, rank)
}


def axes_of(rank: int, axis: Axis) -> Axes:
    """Return the axes of inputs of `rank` whose features lie along `axis`.

    Args:
        rank: Number of axes of the input.
        axis: The KEPT axis or axes, negatives allowed: (0, 2, 3) are reduced for axis=1 of rank 4.

    Raises:
        ArgumentError: if `axis` is not made of ints, is empty, or names an axis twice.
        ShapeError: if `axis` is out of range for `rank`, or nothing is left to reduce over.

    Differs:
        torch fixes axis 1; Keras 3 takes one int, its classic layer a list; Flax an int or a tuple.

    >>> axes_of(3, axis=-1).reduced
    (0, 1)
    >>> axes_of(4, axis=(1, -1)).reduced
    (0, 2)
    """
    axes = normalise_axis(axis)
    return _USUAL.get((rank, axes)) or _axes(rank, axes)
