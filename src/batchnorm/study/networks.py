"""Networks that train many at once: every parameter has a leading axis of replicas, every layer is one computation.

The base network is that of Ioffe and Szegedy 2015, figure 1, unless other widths are asked for: three hidden layers of
100 units. Where batch normalization comes before the activation, its shift β is the bias of the unit; everywhere else
the unit has a bias of its own.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from batchnorm.torch import BatchNorm

Placement = Literal["none", "before", "after", "first"]
Norm = Literal["batch", "layer", "group", "tanh", "init"]
Initialization = Literal["he", "glorot", "0.1"]

WIDTH = 100
DEPTH = 3
HIDDEN = (WIDTH,) * DEPTH
GROUP_SIZE = 10  # units a group of group normalization should have
LEAST_GROUP_SIZE = 4  # two units that are normalised together keep nothing but their order
START_OF_ALPHA = 0.5  # of dynamic tanh, as Zhu et al. 2025 start it


@dataclass(frozen=True)
class Activation:
    """An activation and the initialization that is usual with it.

    Attributes:
        module: Class of the module, which is made without arguments.
        initialization: "he" for N(0, 2/inputs) (He et al. 2015), "glorot" for N(0, 2/(inputs + outputs)) (Glorot and
            Bengio 2010), "0.1" for N(0, 0.1²) (Ioffe and Szegedy 2015).
    """

    module: type[nn.Module]
    initialization: Initialization

    def std(self, inputs: int, outputs: int) -> float:
        """Return the standard deviation of the initial weights of a layer.

        >>> ACTIVATIONS["relu"].std(50, 100), ACTIVATIONS["tanh"].std(100, 100), ACTIVATIONS["sigmoid"].std(50, 100)
        (0.2, 0.1, 0.1)
        """
        if self.initialization == "0.1":
            return 0.1
        return math.sqrt(2.0 / (inputs if self.initialization == "he" else inputs + outputs))


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(nn.ReLU, "he"),
    "sigmoid": Activation(nn.Sigmoid, "0.1"),
    "tanh": Activation(nn.Tanh, "glorot"),
    "gelu": Activation(nn.GELU, "he"),
    "silu": Activation(nn.SiLU, "he"),
    "leaky-relu": Activation(nn.LeakyReLU, "he"),
    "elu": Activation(nn.ELU, "he"),
}


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


class ReplicaGroupNorm(nn.Module):
    """R layers of group normalization side by side; with a single group they are layer normalization.

    y = γ·(x − μ)/√(σ² + ε) + β, where μ and σ² are those of one row over the units of a group: no row depends on its
    batch, and training and prediction are the same.

    Source: Wu and He 2018 (group); Ba, Kiros and Hinton 2016 (layer).
    """

    def __init__(self, replicas: int, features: int, groups: int) -> None:
        """Take how many groups the features form; γ starts at one and β at zero."""
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(replicas, 1, features))
        self.bias = nn.Parameter(torch.zeros(replicas, 1, features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each row of (R, N, C) over the units of each group."""
        grouped = x.unflatten(-1, (self.groups, -1))
        return layer_norm(grouped, grouped.shape[-1:]).flatten(-2) * self.weight + self.bias


class ReplicaDynamicTanh(nn.Module):
    """R dynamic hyperbolic tangents side by side: y = γ·tanh(α·x) + β, with one learned α a replica.

    Source: Zhu et al. 2025, "Transformers without normalization", equation 1.
    """

    def __init__(self, replicas: int, features: int) -> None:
        """Start α at 0.5, γ at one and β at zero."""
        super().__init__()
        self.alpha = nn.Parameter(torch.full((replicas, 1, 1), START_OF_ALPHA))
        self.weight = nn.Parameter(torch.ones(replicas, 1, features))
        self.bias = nn.Parameter(torch.zeros(replicas, 1, features))

    def forward(self, x: Tensor) -> Tensor:
        """Squash each number of (R, N, C) on its own, then scale and shift it."""
        return torch.tanh(self.alpha * x) * self.weight + self.bias


def replica_batch_norm(replicas: int, features: int, virtual_batch_size: int | None = None) -> BatchNorm:
    """Return the layer for (R, N, C): replicas and features kept, so that no replica sees another's statistics."""
    shape, one_may_diverge = (replicas, 1, features), "propagate"
    return BatchNorm(shape, axis=(0, 2), virtual_batch_size=virtual_batch_size, nonfinite=one_may_diverge)


def input_batch_norm(replicas: int, features: int) -> BatchNorm:
    """Return the layer for raw inputs: no γ and β, and the average of all batches, since inputs do not drift."""
    return BatchNorm((replicas, 1, features), axis=(0, 2), affine=False, momentum=None, nonfinite="propagate")


def groups_of(features: int) -> int:
    """Return how many groups of equal size group normalization makes of the features: of ten units, or nearly.

    >>> [groups_of(features) for features in (100, 64, 32, 7)]
    [10, 8, 4, 1]
    """
    sizes = [n for n in range(LEAST_GROUP_SIZE, features + 1) if features % n == 0] or [features]
    return features // min(sizes, key=lambda size: abs(math.log(size / GROUP_SIZE)))


def _drawn(
    seeds: Sequence[int], stds: Sequence[float | None], sizes: Sequence[int], usual: Callable[[int, int], float]
) -> list[Tensor]:
    """Return the weights of every layer, each replica drawn from its own seed: N(0, std²); None: the usual std."""
    replicas: list[list[Tensor]] = []
    for seed, std in zip(seeds, stds, strict=True):
        source = torch.Generator().manual_seed(seed)
        layers = [torch.randn(i, o, generator=source) * (std or usual(i, o)) for i, o in itertools.pairwise(sizes)]
        replicas.append(layers)
    return [torch.stack(weights) for weights in zip(*replicas, strict=True)]


def _normalization(norm: Norm, replicas: int, features: int, virtual_batch_size: int | None) -> nn.Module:
    if norm in ("layer", "group"):
        return ReplicaGroupNorm(replicas, features, groups_of(features) if norm == "group" else 1)
    if norm == "tanh":
        return ReplicaDynamicTanh(replicas, features)
    return replica_batch_norm(replicas, features, virtual_batch_size)


def base_network(
    inputs: int,
    outputs: int,
    *,
    placement: Placement,
    activation: str,
    seeds: Sequence[int],
    stds: Sequence[float | None],
    virtual_batch_size: int | None = None,
    norm: Norm = "batch",
    hidden: Sequence[int] = HIDDEN,
) -> nn.Sequential:
    """Return the base network, one replica for each seed.

    Args:
        inputs: Features of an example.
        outputs: Numbers the network puts out.
        placement: Normalization before or after each activation, batch normalization as first layer alone, or nowhere.
        activation: One of `ACTIVATIONS`.
        seeds: One a replica; equal seeds draw equal weights whatever the placement and the normalization.
        stds: Standard deviation of the weights, one a replica; None: the activation's own.
        virtual_batch_size: Of the layers before or after the activations; None: each batch is normalised as one.
        norm: What stands before or after the activations: "batch", "layer" or "group" normalization, or "tanh" for
            dynamic tanh. "init" is for placement "none": `rescale_to_data` sets what the units start from.
        hidden: Units of each hidden layer.
    """
    replicas = len(seeds)
    kind = ACTIVATIONS[activation]
    weights = _drawn(seeds, stds, [inputs, *hidden, outputs], kind.std)
    layers: list[nn.Module] = [input_batch_norm(replicas, inputs)] if placement == "first" else []
    for weight in weights[:-1]:
        unit: list[nn.Module] = [ReplicaLinear(weight, bias=placement != "before"), kind.module()]
        if placement in ("before", "after"):
            between = _normalization(norm, replicas, weight.shape[2], virtual_batch_size)
            unit.insert(1 if placement == "before" else 2, between)
        layers += unit
    return nn.Sequential(*layers, ReplicaLinear(weights[-1]))


@torch.no_grad()
def rescale_to_data(network: nn.Sequential, x: Tensor) -> None:
    """Scale and shift every hidden unit, layer by layer, so that on these rows it has zero mean and unit variance.

    Each unit's weights are divided by the standard deviation σ of its pre-activation t over the rows, and its bias
    becomes −mean(t)/σ: the network starts as if batch normalization had been there, and then trains without it. A unit
    that does not vary, or is not finite, keeps its weights. The output layer keeps its usual weights.

    Args:
        network: What `base_network` returns for placement "none".
        x: Rows of every replica, (R, N, inputs).

    Source: Salimans and Kingma 2016, "Weight normalization", section 3; Mishkin and Matas 2016, "All you need is a good
        init", scale whole layers and do not shift, which in this network trains more slowly.
    """
    for layer in list(network)[:-1]:
        x = layer(x)
        if isinstance(layer, ReplicaLinear) and layer.bias is not None:
            std, mean = x.std(1, correction=0, keepdim=True), x.mean(1, keepdim=True)
            usable = std.isfinite() & (std > 0)
            factor = torch.where(usable, 1.0 / std, 1.0)
            layer.weight.mul_(factor)
            layer.bias.copy_(torch.where(usable, -mean * factor, 0.0))
            x = x * factor + layer.bias
