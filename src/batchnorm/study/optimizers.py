"""The usual optimizers with a learning rate for each replica: θ ← θ − rate·direction.

torch.optim takes one rate for a whole tensor, and here all replicas of a parameter are one tensor. The rules are those
of torch.optim with its defaults, which the tests compare step by step.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from batchnorm.study.own_model import SideBySide

Memory = defaultdict[str, Tensor]


def _sgd(gradient: Tensor, _: Memory) -> Tensor:
    return gradient


def _momentum(gradient: Tensor, memory: Memory) -> Tensor:
    return memory["velocity"].mul_(0.9).add_(gradient)


def _rmsprop(gradient: Tensor, memory: Memory) -> Tensor:
    square = memory["square"].mul_(0.99).addcmul_(gradient, gradient, value=0.01)
    return gradient / square.sqrt().add_(1e-8)


def _adam(gradient: Tensor, memory: Memory) -> Tensor:
    mean = memory["mean"].lerp_(gradient, 0.1)
    square = memory["square"].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    steps = memory.setdefault("steps", torch.zeros((), dtype=gradient.dtype)).add_(1.0)
    return mean / (1.0 - 0.9**steps) / (square / (1.0 - 0.999**steps)).sqrt_().add_(1e-8)


OPTIMIZERS: dict[str, Callable[[Tensor, Memory], Tensor]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "rmsprop": _rmsprop,
    "adam": _adam,
}


def _rated(network: nn.Module, rates: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """Pair every parameter with its learning rate, shaped to multiply it."""
    if isinstance(network, SideBySide):
        return [(p, rate) for model, rate in zip(network.models, rates, strict=True) for p in model.parameters()]
    return [(p, rates.reshape(-1, *[1] * (p.ndim - 1))) for p in network.parameters()]


class ReplicaOptimizer:
    """One optimizer over all replicas.

    Attributes:
        rate: Multiplies every replica's rate; change it between steps for a schedule.
    """

    def __init__(self, name: str, network: nn.Module, rates: Sequence[float]) -> None:
        """Take the optimizer's name, the network and one rate a replica."""
        self.rate = 1.0
        self._direction = OPTIMIZERS[name]
        self._rated = _rated(network, torch.tensor(rates))
        self._memories: list[Memory] = [defaultdict(lambda p=p: torch.zeros_like(p)) for p, _ in self._rated]

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter by its gradient, and clear the gradients."""
        for (parameter, rate), memory in zip(self._rated, self._memories, strict=True):
            if parameter.grad is not None:
                parameter.addcmul_(self._direction(parameter.grad, memory), rate, value=-self.rate)
                parameter.grad = None
