"""What the layer may be given: each error names the argument, the rule, the value received and the way out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from batchnorm.errors import ArgumentError, ShapeError
from batchnorm.keras.namespace import ops
from batchnorm.layout import Axes, Axis, normalise_axis
from batchnorm.layout import axes_of as planned
from batchnorm.renorm import CLIPS, Renorm

FUSED_AXES = (-4, -3, -1, 1, 3, 4)  # where the channels of an input of rank 4 or 5 may lie


@dataclass(frozen=True)
class Held:
    """A clip value held in a variable or a 0-d tensor, read at each step, as the classic layer allows."""

    value: Any

    def __call__(self, step: Any) -> Any:
        """Return the value as it is now."""
        del step
        return self.value


def number(name: str, value: Any) -> float:
    """Return as a float, which JSON can hold, a number or what a scalar array or variable holds now; or raise."""
    if isinstance(value, Real):
        return float(value)
    try:
        if hasattr(value, "dtype") and tuple(value.shape) == ():
            return float(ops.convert_to_numpy(ops.convert_to_tensor(value)))
        if not hasattr(value, "dtype") and hasattr(value, "__float__"):
            return float(value)
    except Exception as error:  # what a tracer raises is its framework's own
        raise ArgumentError(
            f"`{name}` must be a number whose value is known when the layer is made, got {type(value).__name__}"
        ) from error
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    raise ArgumentError(f"`{name}` must be a number or a scalar array, got {type(value).__name__}{shape}")


def momentum_of(name: str, momentum: Any) -> float:
    """Return a momentum, as the weight of the OLD statistics; or raise unless it is in [0, 1]."""
    value = number(name, momentum)
    if not 0.0 <= value <= 1.0:
        raise ArgumentError(
            f"`{name}` must lie in [0, 1], got {momentum!r} (it weighs the old statistics: s ← s·{name} + "
            f"batch·(1 − {name}); torch's 0.1 is 0.9 here)"
        )
    return value


def flag(value: Any) -> Any:
    """Return a bool of NumPy as Python's, which JSON can hold; anything else as it is."""
    return bool(value) if isinstance(value, np.bool_) else value


def axes_of(axis: Any) -> Axis:
    """Return `axis` as an int, or a tuple where there are several; or raise."""
    axes = normalise_axis(axis)
    return axes[0] if len(axes) == 1 else axes


def renorm_of(clipping: Any, momentum: float) -> Renorm:
    """Return what `renorm_clipping` and `renorm_momentum` say, or raise."""
    clipping = {} if clipping is None else clipping
    if not isinstance(clipping, Mapping):
        raise ArgumentError(f"`renorm_clipping` must be None or a dictionary, got {clipping!r}")
    unknown = sorted(map(str, set(clipping) - set(CLIPS)))
    if unknown:
        raise ArgumentError(
            f'`renorm_clipping` may hold "rmin", "rmax" and "dmax", got {", ".join(map(repr, unknown))} in '
            f"{dict(clipping)!r}"
        )
    clips = {name: _clip(value) for name, value in clipping.items()}
    try:
        return Renorm(**clips, momentum=1.0 - momentum)
    except ArgumentError as error:
        raise ArgumentError(f"`renorm_clipping`: {error}") from None


def _clip(value: Any) -> Any:
    """Return a clip value as `Renorm` takes it: what may change from step to step is a function of the step."""
    if isinstance(value, Real):
        return value if isinstance(value, int | float) else float(value)  # JSON does not know NumPy's scalars
    if callable(value) or not hasattr(value, "dtype"):
        return value
    if tuple(value.shape) != ():
        raise ArgumentError(f"`renorm_clipping` takes scalars, got one of shape {tuple(value.shape)}")
    return Held(value)


def check_fused(fused: Any, axis: Axis, forbidden: Mapping[str, Any]) -> None:
    """Raise unless `fused` is None or a bool, and where it is True, nothing stands against it."""
    if fused is not None and not isinstance(fused, bool):
        raise ArgumentError(f"`fused` must be None, True or False, got {fused!r}")
    if not fused:
        return
    for name, value in forbidden.items():
        raise ArgumentError(f"`fused=True` excludes `{name}`, got {name}={value!r} (fused=None takes every option)")
    if axis not in FUSED_AXES:
        raise ArgumentError(
            "`fused=True` needs one axis, that of the channels: 1 or −1 of an input of rank 4 or 5, "
            f"got axis={axis!r} (fused=None takes any)"
        )


def check_sizes(shape: Sequence[int | None], axis: Axis, layout: Axes) -> None:
    """Raise unless the sizes of the axes of features are known, from which the parameters are made."""
    if any(shape[i] is None for i in layout.kept):
        raise ShapeError(
            f"`axis` must name axes whose size is known when the layer is built, got axis={axis!r} for an input of "
            f"shape {tuple(shape)} (`build` takes the shape, and later inputs may leave sizes open)"
        )


def layout_of(shape: Sequence[int | None], axis: Axis, *, fused: bool | None, virtual: bool) -> Axes:
    """Return the axes of inputs of a shape, where None is a size not known yet; or raise."""
    layout, shape = planned(len(shape), axis), tuple(shape)
    if virtual and layout.batch_axis != 0:
        raise ArgumentError(f"`virtual_batch_size` splits axis 0, which `axis` must not keep, got axis={axis!r}")
    if fused and (len(shape) not in (4, 5) or layout.kept not in ((1,), (len(shape) - 1,))):
        raise ShapeError(
            "`fused=True` needs an input of rank 4 or 5 whose channels lie along axis 1 or −1, got axis="
            f"{axis!r} for an input of shape {shape} (fused=None takes any)"
        )
    return layout
