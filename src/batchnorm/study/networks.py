"""Networks that train many at once: every parameter has a leading axis of replicas, every layer is one computation.

The base network is that of Ioffe and Szegedy 2015, figure 1: three hidden layers of 100 units. Its layers of
batch normalization are there in every comparison; where there is to be none they are switched off, which leaves their
scale and shift: with or without, the same number of parameters is trained. β is the bias of the unit; only where batch
normalization comes after the activation has the unit a bias of its own.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from batchnorm.torch import BatchNorm

Placement = Literal["none", "before", "after", "first"]

WIDTH = 100
DEPTH = 3
ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}


class ReplicaLinear(nn.Module):
    """R linear layers side by side: (R, N, inputs) → (R, N, outputs)."""

    def __init__(self, weight: Tensor, *, bias: bool = True) -> None:
        """Take the weights, (R, inputs, outputs); biases start at zero."""
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(weight.shape[0], 1, weight.shape[2])) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each replica's batch by its own weights."""
        return torch.bmm(x, self.weight) if self.bias is None else torch.baddbmm(self.bias, x, self.weight)


def replica_batch_norm(replicas: int, features: int, virtual_batch_size: int | None = None) -> BatchNorm:
    """Return the layer for (R, N, C): replicas and features kept, so that no replica sees another's statistics."""
    shape, one_may_diverge = (replicas, 1, features), "propagate"
    return BatchNorm(shape, axis=(0, 2), virtual_batch_size=virtual_batch_size, nonfinite=one_may_diverge)


def input_batch_norm(replicas: int, features: int) -> BatchNorm:
    """Return the layer for raw inputs: no γ and β, and the average of all batches, since inputs do not drift."""
    return BatchNorm((replicas, 1, features), axis=(0, 2), affine=False, momentum=None, nonfinite="propagate")


def _drawn(seeds: Sequence[int], stds: Sequence[float | None], sizes: Sequence[int], relu: bool) -> list[Tensor]:
    """Return the weights of every layer, each replica drawn from its own seed: N(0, std²).

    Without an std: 0.1 for the sigmoid (Ioffe and Szegedy 2015), √(2/inputs) for ReLU (He et al. 2015).
    """
    replicas: list[list[Tensor]] = []
    for seed, std in zip(seeds, stds, strict=True):
        source = torch.Generator().manual_seed(seed)
        layers = [
            torch.randn(i, o, generator=source) * (std or (math.sqrt(2.0 / i) if relu else 0.1))
            for i, o in itertools.pairwise(sizes)
        ]
        replicas.append(layers)
    return [torch.stack(weights) for weights in zip(*replicas, strict=True)]


def base_network(
    inputs: int,
    outputs: int,
    *,
    placement: Placement,
    activation: str,
    seeds: Sequence[int],
    stds: Sequence[float | None],
    virtual_batch_size: int | None = None,
) -> nn.Sequential:
    """Return the base network, one replica for each seed.

    Args:
        inputs: Features of an example.
        outputs: Numbers the network puts out.
        placement: Batch normalization before or after each activation, as first layer alone, or nowhere.
        activation: "sigmoid" or "relu".
        seeds: One a replica; equal seeds draw equal weights whatever the placement.
        stds: Standard deviation of the weights, one a replica; None: the activation's own.
        virtual_batch_size: Of the layers before or after the activations; None: each batch is normalised as one.
    """
    replicas = len(seeds)
    sizes = [inputs, *[WIDTH] * DEPTH, outputs]
    weights = _drawn(seeds, stds, sizes, activation == "relu")
    layers: list[nn.Module] = [input_batch_norm(replicas, inputs)] if placement == "first" else []
    for weight in weights[:-1]:
        norm = replica_batch_norm(replicas, weight.shape[2], virtual_batch_size)
        between = [norm, ACTIVATIONS[activation]()]
        after = placement == "after"
        layers += [ReplicaLinear(weight, bias=after), *(reversed(between) if after else between)]
    return nn.Sequential(*layers, ReplicaLinear(weights[-1]))
