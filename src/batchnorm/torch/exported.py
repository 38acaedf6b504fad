"""The layer in a program that is written down, by torch.export, ONNX or torch.jit.trace: torch's own operators.

Tools that read such programs (runtimes, quantization, what moves a program to inference) know `aten.batch_norm`, and
find nothing in the subtraction and multiplication that our kernels are.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm.activations import LEAKY_SLOPE
from batchnorm.core.passes import NormInputs
from batchnorm.core.plan import working_dtype
from batchnorm.errors import ArgumentError
from batchnorm.layout import Axes, axes_of, normalise_axis
from batchnorm.torch.check import check_call

_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda z: z,
    "relu": functional.relu,
    "leaky_relu": lambda z: functional.leaky_relu(z, LEAKY_SLOPE),
    "silu": functional.silu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
_HELD = ("activation=", "axis=", "nonfinite='propagate'")  # options that training by torch's operators holds


class ExportCall(NamedTuple):
    """What a layer is called with: x, its parameters and statistics by name, the residual, and weights of samples."""

    x: Tensor
    named: dict[str, Tensor | None]
    residual: Tensor | None
    weights: Tensor | None


def _in(dtype: torch.dtype, t: Tensor) -> Tensor:
    """Return a tensor in a dtype; as it is where it has it, for a cast to it would be written down all the same."""
    return t if t.dtype == dtype else t.to(dtype)


def _features_at_1(x: Tensor, axis: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return x with its features along axis 1, and what undoes that for the output."""
    if axis == 1:
        return x, lambda y: y
    if axis == x.ndim - 1:
        shape = x.shape
        return x.flatten(0, -2), lambda y: y.reshape(shape)
    return x.movedim(axis, 1), lambda y: y.movedim(1, axis)


def _lost(layer: Any, chosen: Sequence[str], *, weighted: bool) -> list[str]:
    """Return the options, as they are written, that training by torch's operators would lose."""
    lost = [option for option in chosen if not option.startswith(_HELD)] + ["weights="] * weighted
    if len(normalise_axis(layer.axis)) > 1:
        lost.append(f"axis={layer.axis}")
    if layer.training:
        lost += ["momentum=None"] * (layer.momentum is None)
        lost += ["held statistics"] * (layer.running_mean is not None and not layer.updates_statistics())
    return lost


def _checked(layer: Any, call: ExportCall) -> tuple[NormInputs, Axes]:
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]  # sizes are tensors there, and torch warns of each that is compared
        inputs = NormInputs(call.x, call.named["weight"], call.named["bias"], call.residual, call.weights)
        return inputs, axes_of(call.x.ndim, layer.axis)
    return check_call(layer.norm_spec, call.x, call.named, residual=call.residual, weights=call.weights)


def normalize(layer: Any, call: ExportCall, *, by_batch: bool, chosen: Sequence[str]) -> Tensor | None:
    """Return the output of a layer by torch's operators, and update its statistics; None where these do not serve.

    In training a program holds what torch's own layer does: a batch with inf or NaN is not skipped.

    Args:
        layer: A `BatchNorm`.
        call: What it is called with.
        by_batch: Whether the batch normalises.
        chosen: The options of the layer that are not their defaults, as they are written.

    Raises:
        ArgumentError: in training, where an option, or `weights`, asks for what torch's operator does not do.
    """
    inputs, axes = _checked(layer, call)
    x, (axis, *others) = inputs.x, axes.kept
    lost = _lost(layer, chosen, weighted=inputs.weights is not None) if by_batch else []
    if lost and layer.training:
        raise ArgumentError(
            f"a program for training cannot hold {', '.join(lost)}, and could not be moved to inference (export the "
            "model in inference: `model.eval()` first)"
        )
    if lost or others or axis == 0:
        return None
    precise = working_dtype(x.dtype, torch)
    running = call.named["running_mean"], call.named["running_var"]
    numbers = (inputs.weight, inputs.bias, *((None, None) if by_batch else running))
    weight, bias, mean, var = (p if p is None else _in(precise, p) for p in numbers)
    updates = by_batch and layer.updates_statistics()
    if updates:  # in place, so as they are
        mean, var = running
        layer.num_batches_tracked.add_(1)
    dtype = x.dtype
    x, restored = _features_at_1(x if inputs.residual is None else _in(precise, x), axis)  # added before it is rounded
    momentum = layer.momentum if updates else 0.0
    z = restored(functional.batch_norm(x, mean, var, weight, bias, by_batch, momentum, layer.eps))
    if inputs.residual is not None:
        z = z + _in(precise, inputs.residual)
    return _in(dtype, _ACTIVATIONS[layer.activation](z))
