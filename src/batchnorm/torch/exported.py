"""The layer in a program that is written down, by torch.export, ONNX or torch.jit.trace: torch's own operators.

Tools that read such programs (runtimes, quantization, what moves a program to inference) know `aten.batch_norm`, and
find nothing in the subtraction and multiplication that our kernels are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm.activations import LEAKY_SLOPE
from batchnorm.errors import ArgumentError
from batchnorm.layout import normalise_axis
from batchnorm.steps import working_dtype

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


def _features_at_1(x: Tensor, axis: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return x with its features along axis 1, and what undoes that for the output."""
    if axis == 1:
        return x, lambda y: y
    if axis == x.ndim - 1:
        shape = x.shape
        return x.flatten(0, -2), lambda y: y.reshape(shape)
    return x.movedim(axis, 1), lambda y: y.movedim(1, axis)


def _check_training(layer: Any, chosen: Sequence[str], weights: Tensor | None) -> None:
    """Raise where training does something that no operator of torch does."""
    lost = [option for option in chosen if not option.startswith(_HELD)] + ["weights="] * (weights is not None)
    if layer.momentum is None:
        lost.append("momentum=None")
    if lost:
        raise ArgumentError(
            f"a program for training cannot hold {', '.join(lost)}, and could not be moved to inference (export the "
            "model in inference: `model.eval()` first)"
        )


def normalise(
    layer: Any, x: Tensor, residual: Tensor | None, weights: Tensor | None, *, training: bool, chosen: Sequence[str]
) -> Tensor | None:
    """Return the output of a layer by torch's operators, and move its statistics; None where these do not serve.

    In training a program holds what torch's own layer does: a batch with inf or NaN is not skipped.

    Args:
        layer: A `BatchNorm`.
        x: Its input.
        residual: Added before the activation.
        weights: Of samples; they matter in training alone.
        training: Whether the batch normalises.
        chosen: The options of the layer that are not their defaults, as they are written.

    Raises:
        ArgumentError: in training, where an option, or `weights`, asks for what torch's operator does not do.
    """
    axis, *others = normalise_axis(layer.axis)
    if others or x.ndim < 2 or not -x.ndim <= axis < x.ndim or axis % x.ndim == 0:
        return None
    if training:
        _check_training(layer, chosen, weights)
    moves = training and layer.listens()
    statistics = (layer.running_mean, layer.running_var) if moves or not training else (None, None)
    working = working_dtype(x.dtype, torch)
    weight, bias = (p if p is None or p.dtype == working else p.to(working) for p in (layer.weight, layer.bias))
    x, restored = _features_at_1(x, axis % x.ndim)
    momentum = layer.momentum if moves else 0.0
    z = restored(functional.batch_norm(x, *statistics, weight, bias, training, momentum, layer.eps))
    if moves and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    return _ACTIVATIONS[layer.activation](z if residual is None else z + residual)
