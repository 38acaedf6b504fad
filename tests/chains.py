"""Networks of layers one behind the other, and data sorted by class: what it takes to tell one pass from another."""

import torch
from torch import Tensor, nn


def chain(depth: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(depth):
        parts += [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()]
    return nn.Sequential(*parts)


def by_class() -> Tensor:
    """Rows of eight classes, sorted by class."""
    return torch.randn(384, 8) + (3 * torch.randn(8, 8))[torch.arange(384) // 48]


def off(model: nn.Module, truth: nn.Module) -> float:
    """Return how far the statistics of the worst layer are off: of the mean in σ, of the variance as a share."""
    worst = 0.0
    for a, b in zip(model.modules(), truth.modules(), strict=True):
        if isinstance(a, nn.BatchNorm1d) and isinstance(b, nn.BatchNorm1d):
            assert a.running_mean is not None
            assert b.running_mean is not None
            assert a.running_var is not None
            assert b.running_var is not None
            moved = (a.running_mean - b.running_mean).abs() / (b.running_var + b.eps).sqrt()
            worst = max(worst, moved.max().item(), (a.running_var / b.running_var - 1).abs().nan_to_num().max().item())
    return worst
