"""Every option of the layer in float64, written out sample by sample and group by group, differentiated by autograd.

Shares no line and no formula with the package: axes are moved to the front, groups are gathered by index, weighted
moments are sums over a list, and each option is applied in the words of its definition.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ACTIVATIONS = {
    None: lambda z: z,
    "relu": torch.nn.functional.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@dataclass
class Truth:
    """The output, and what an update of the running statistics takes in: None where nothing is to be remembered."""

    y: Tensor
    mean: Tensor | None
    unbiased: Tensor | None
    biased: Tensor | None


def _rows(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return x as (samples, features), the kept axes last, in their order."""
    return x.movedim(axes, tuple(range(-len(axes), 0))).flatten(-len(axes)).flatten(0, -2)


def _back(rows: Tensor, like: Tensor, axes: tuple[int, ...]) -> Tensor:
    shape = [n for i, n in enumerate(like.shape) if i not in axes] + [like.shape[a] for a in axes]
    return rows.reshape(shape).movedim(tuple(range(-len(axes), 0)), axes)


def _groups(x: Tensor, axes: tuple[int, ...], virtual: int | None) -> list[list[int]]:
    """Return the rows of each group: sample i of the batch axis belongs to group i mod max(1, B // v)."""
    reduced = [i for i in range(x.ndim) if i not in axes]
    sizes = [x.shape[i] for i in reduced]
    number = 1 if virtual is None else max(1, sizes[0] // virtual)
    found: list[list[int]] = [[] for _ in range(number)]
    for row, index in enumerate(itertools.product(*map(range, sizes))):
        found[index[0] % number].append(row)
    return found


def normalise(  # it is a list of definitions
    x: Tensor,
    *,
    axes: tuple[int, ...],
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    weights: Tensor | None = None,
    virtual: int | None = None,
    activation: str | None = None,
    running: tuple[Tensor, Tensor] | None = None,
    renorm: dict[str, Any] | None = None,
) -> Truth:
    """Train on one batch.

    Args:
        x: Input.
        axes: Kept axes, non-negative and sorted.
        gamma: γ, flat.
        beta: β, flat.
        eps: ε.
        residual: In the shape of x.
        weights: In the shape of x, the same for every feature.
        virtual: Size of virtual batches.
        activation: Name.
        running: Mean and variance, flat, for groups of total weight zero; 0 and 1 stand in.
        renorm: M and S, flat, with rmin, rmax and dmax.
    """
    rows = _rows(x, axes)
    w = torch.ones_like(rows) if weights is None else _rows(weights, axes)
    features = rows.shape[1]
    fallback = (torch.zeros(features), torch.ones(features)) if running is None else running
    hats, means, unbiased, biased = torch.zeros_like(rows), [], [], []
    heard: list[tuple[list[int], Tensor, Tensor]] = []
    for group in _groups(x, axes, virtual):
        total = w[group, 0].sum()
        if total == 0:
            scale = (fallback[1] + eps).sqrt()
            hats = hats.index_put((torch.tensor(group),), (rows[group] - fallback[0]) / scale)
            continue
        mean = (w[group] * rows[group]).sum(0) / total
        square = (w[group] * (rows[group] - mean) ** 2).sum(0)
        means.append(mean.detach())
        biased.append((square / total).detach())
        unbiased.append((square / (total - 1 if total > 1 else total)).detach())
        heard.append((group, mean, square / total))
    averages = [torch.stack(values).mean(0) if values else None for values in (means, unbiased, biased)]
    r, d = torch.ones(features, dtype=x.dtype), torch.zeros(features, dtype=x.dtype)
    if renorm is not None and heard:
        S = renorm["S"].clamp(min=eps**0.5)  # noqa: N806  # the paper's
        low, high, far = (math.inf if renorm[k] is None else renorm[k] for k in ("rmin", "rmax", "dmax"))
        r = ((averages[2] + eps).sqrt() / S).clamp(0.0 if renorm["rmin"] is None else low, high)
        d = ((averages[0] - renorm["M"]) / S).clamp(-far, far)
    for group, mean, var in heard:
        hat = (rows[group] - mean) / (var + eps).sqrt() * r + d
        hats = hats.index_put((torch.tensor(group),), hat)
    z = hats if gamma is None else hats * gamma
    z = z if beta is None else z + beta
    z = _back(z, x, axes)
    z = z if residual is None else z + residual
    return Truth(ACTIVATIONS[activation](z), *averages)
