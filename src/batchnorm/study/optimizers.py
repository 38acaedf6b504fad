"""torch.optim's own optimizers, with a learning rate for each replica."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.study.own_model import SideBySide

OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda moves: torch.optim.SGD(moves, lr=1.0),
    "momentum": lambda moves: torch.optim.SGD(moves, lr=1.0, momentum=0.9),
    "rmsprop": lambda moves: torch.optim.RMSprop(moves, lr=1.0),
    "adam": lambda moves: torch.optim.Adam(moves, lr=1.0),
}


def _rated(network: nn.Module, rates: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """Pair every parameter with its learning rate, shaped to multiply it."""
    if isinstance(network, SideBySide):
        return [(p, rate) for model, rate in zip(network.models, rates, strict=True) for p in model.parameters()]
    return [(p, rates.reshape(-1, *[1] * (p.ndim - 1))) for p in network.parameters()]


class ReplicaOptimizer:
    """One of torch.optim's optimizers over all replicas, θ ← θ + rate·move.

    torch.optim takes one rate for a whole tensor, and the replicas of a parameter are one tensor. So the optimizer
    works at rate 1 on `moves`, which start each step at zero and after it hold minus the update direction.

    Attributes:
        rate: Multiplies every replica's rate; change it between steps for a schedule.
    """

    def __init__(self, name: str, network: nn.Module, rates: Sequence[float]) -> None:
        """Take the optimizer's name, the network and one rate a replica."""
        self.rate = 1.0
        self._rated = _rated(network, torch.tensor(rates))
        self._moves = [torch.zeros_like(p) for p, _ in self._rated]
        self._optimizer: Any = OPTIMIZERS[name](self._moves)

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter by its gradient, and clear the gradients."""
        for move, (parameter, _) in zip(self._moves, self._rated, strict=True):
            move.grad, parameter.grad = parameter.grad, None
        self._optimizer.step()
        for move, (parameter, rate) in zip(self._moves, self._rated, strict=True):
            parameter.addcmul_(move, rate, value=self.rate)
            move.zero_()
