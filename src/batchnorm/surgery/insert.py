"""Put batch normalization into a model that has none."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.torch import BatchNorm

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
ACTIVATIONS = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.Mish, nn.PReLU, nn.ReLU,
    nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
)  # fmt: skip


def _called(model: nn.Module, example_inputs: Tensor) -> list[tuple[str, nn.Module, int, int]]:
    """Run one forward in inference; return (name, module, features, axis) of each layer that matters, in call order.

    An activation is taken to have the features of the layer before it.
    """
    calls: list[tuple[str, nn.Module, int, int]] = []

    def record(name: str, module: nn.Module, output: Any) -> None:
        axis = 1 if isinstance(module, CONVOLUTIONS) else -1
        if isinstance(module, ACTIVATIONS):
            axis = calls[-1][3] if calls else -1
        calls.append((name, module, int(output.shape[axis]), axis))

    handles: list[Any] = []
    modes = {module: module.training for module in model.modules()}
    try:
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, *CONVOLUTIONS, *ACTIVATIONS)):
                handles.append(module.register_forward_hook(lambda m, _, out, name=name: record(name, m, out)))
        with torch.no_grad():
            model.eval()(example_inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return calls


def insert(model: nn.Module, example_inputs: Tensor, position: Literal["before", "after"] = "before") -> list[str]:
    """Insert batch normalization before or after each activation of `model`, in place.

    "before": behind every Linear and convolution but the last one called, ahead of what activates it. "after": behind
    every activation module that another Linear or convolution follows. The model itself is run once, in inference, to
    see what is called in which order and with how many features.

    Args:
        model: Changed in place: a layer `m` becomes `Sequential(m, BatchNorm)` under the same name.
        example_inputs: One batch that the model accepts.
        position: Before or after the activation.

    Returns:
        The names of the layers that are now followed by batch normalization.

    Raises:
        ArgumentError: if `position` is neither.
        BatchNormError: if nothing was found to normalise, or a layer is called more than once.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> insert(net, torch.zeros(1, 2))
    ['0']
    >>> net[0][1].num_features
    3
    """
    if position not in ("before", "after"):
        raise ArgumentError(f'`position` must be "before" or "after" the activation, got {position!r}')
    calls = _called(model, example_inputs)
    weighted = [i for i, (_, module, _, _) in enumerate(calls) if not isinstance(module, ACTIVATIONS)]
    last = weighted[-1] if weighted else 0
    chosen = [c for c in calls[:last] if isinstance(c[1], ACTIVATIONS) == (position == "after")]
    names = [name for name, *_ in chosen]
    if not names:
        raise BatchNormError(f"no layer to normalise {position} an activation was found in {type(model).__name__}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise BatchNormError(f"{', '.join(repeated)} is called more than once: one set of statistics cannot serve both")
    for name, module, features, axis in chosen:
        parent, _, child = name.rpartition(".")
        like = next(module.parameters(), next(model.parameters()))
        layer = BatchNorm(features, axis=axis, device=like.device, dtype=like.dtype).train(module.training)
        setattr(model.get_submodule(parent), child, nn.Sequential(module, layer).train(module.training))
    return names
