"""Layers, arrays and comparisons for the tests of the options."""

from typing import Any

import torch

import truth
from batchnorm.torch import BatchNorm, Ramp, Renorm
from namespaces import to_numpy
from regimes import parameter_shape
from tolerance import assert_close

EPSILON = 1e-5
LAYOUTS: list[tuple[tuple[int, ...], int | tuple[int, ...]]] = [
    ((9, 3), 1),
    ((5, 3, 4), 1),
    ((5, 4, 3), -1),
    ((4, 3, 2, 3), 1),
    ((3, 4, 2, 3), -1),
    ((4, 3, 3, 2), (1, -1)),
    ((2, 6, 3), (0, 2)),
]
ACTIVATIONS = [a for a in truth.ACTIVATIONS if a]
RENORMS = {
    "unbounded": Renorm(momentum=0.1),
    "clipped": Renorm(rmin=0.9, rmax=1.1, dmax=0.1, momentum=0.05),
    "one side": Renorm(rmax=1.05),
    "schedule": Renorm(Ramp(1.0, 0.5, 1, 4), Ramp(1.0, 1.5, 1, 4), Ramp(0.0, 0.5, 0, 3), momentum=0.3),
}


def kept(rank: int, axis: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(a % rank for a in ((axis,) if isinstance(axis, int) else axis)))


def normal(shape: Any, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def without_features(shape: tuple[int, ...], axis: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for i, n in enumerate(shape) if i not in kept(len(shape), axis))


def layer_for(shape: tuple[int, ...], axis: int | tuple[int, ...], **options: Any) -> BatchNorm:
    features: Any = parameter_shape(shape, axis) if isinstance(axis, tuple) else shape[axis]
    layer = BatchNorm(features, axis=axis, **options).double()
    with torch.no_grad():
        if layer.weight is not None:
            layer.weight.copy_(normal(layer.weight.shape, 11))
            layer.bias.copy_(normal(layer.bias.shape, 12))
    return layer


def gradients(layer: BatchNorm, y: torch.Tensor, dy: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(y, [*leaves, layer.weight, layer.bias], dy))


def assert_equal(a: Any, b: Any, dtype: str = "float64", scale: float = 64.0) -> None:
    assert_close(to_numpy(a), to_numpy(b), dtype, scale)


def assert_same_statistics(a: BatchNorm, b: BatchNorm, dtype: str = "float64") -> None:
    for (name, mine), (_, other) in zip(a.named_buffers(), b.named_buffers(), strict=True):
        assert mine.dtype == other.dtype, name
        assert_equal(mine, other, dtype)
