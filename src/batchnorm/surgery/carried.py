"""Where features end up that are moved in memory or averaged over positions: which feature is which, behind a path."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.surgery.flow import Call

# What moves elements, repeats them, or takes means of elements of one feature: scaling a feature and shifting it may
# come after. Whether a call mixes features after all, or pads with zeros, shows in the marks.
FUNCTIONS = {
    "flatten", "unflatten", "ravel", "view", "view_as", "reshape", "reshape_as", "squeeze", "unsqueeze", "contiguous",
    "clone", "permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "mT", "T", "pixel_shuffle",
    "pad", "mean", "interpolate", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
}  # fmt: skip
MODULES = (
    nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.Upsample, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d,
    nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d, nn.ConstantPad1d, nn.ConstantPad2d,
    nn.ConstantPad3d,
)  # fmt: skip
APART = 1e-9  # of marks, whose means over one feature are off by rounding alone


def carries(call: Call) -> bool:
    """Return whether a call only moves elements, or averages them."""
    known = call.name in FUNCTIONS if call.module is None else isinstance(call.module, MODULES)
    return known and call.again is not None and len(call.inputs) == 1


def _marks(features: int) -> Tensor:
    """Return a number for each feature; the mean of some is hardly ever that of another."""
    return torch.arange(2, features + 2, dtype=torch.float64).sqrt()


def _along(values: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    return values.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))]).expand(*shape)


@torch.no_grad()
def features_behind(
    path: Sequence[Call], before: tuple[tuple[int, ...], int], behind: tuple[tuple[int, ...], int], *, of_first: bool
) -> Tensor | None:
    """Return which feature each feature becomes, or comes from; None where they are mixed, or there is none.

    Args:
        path: Calls that carry, from first to last.
        before: Shape, and axis of the features, of what the path begins with.
        behind: Likewise of what it ends with.
        of_first: Whether to return for each feature of the beginning what it becomes, or for each of the end where it
            comes from.
    """
    (first, axis), (last, end_axis) = before, behind
    if not path:
        return torch.arange(first[axis]) if before == behind else None
    marks = _marks(first[axis])
    carried: Any = _along(marks, first, axis).contiguous()
    try:
        for call in path:
            carried = call.again and call.again(carried)
    except Exception:  # of whatever kind: a function that takes another dtype, say
        return None
    if not isinstance(carried, Tensor) or carried.shape != last:
        return None
    nearest = torch.searchsorted(marks, carried.contiguous() - APART).clamp(max=len(marks) - 1)
    if not bool(((marks[nearest] - carried).abs() <= APART).all()):
        return None
    own = _along(torch.arange(last[end_axis]), last, end_axis)
    here, there = (nearest.flatten(), own.flatten()) if of_first else (own.flatten(), nearest.flatten())
    found = torch.full((first[axis] if of_first else last[end_axis],), -1)
    found[here] = there
    return found if bool((found >= 0).all() and (found[here] == there).all()) else None
