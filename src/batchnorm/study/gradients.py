"""Gradients of a network that trains many replicas, taken between two steps of its training without leaving a trace."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from batchnorm.models.preserve import preserved
from batchnorm.study.networks import ReplicaLinear
from batchnorm.study.own_model import SideBySide
from batchnorm.study.training import Rows, losses, train_mode


@contextmanager
def between_steps(network: nn.Module, rows: Rows) -> Generator[None]:
    """Put the network into training as its runs train it; at the end, restore every bit of it and the random state."""
    with preserved(network):
        train_mode(network, rows.specs[0].placement)
        yield


def batch(rows: Rows, step: int) -> tuple[Tensor, Tensor]:
    """Return x and y of a batch of random training rows: the same for equal seeds at equal steps, in any network."""
    size = rows.specs[0].batch_size
    orders = [np.random.default_rng([s.seed, step]).permutation(len(rows.splits[0].train))[:size] for s in rows.specs]
    return rows.take(np.stack([part.train[order] for part, order in zip(rows.splits, orders, strict=True)]))


def fixed_rows(rows: Rows, most: int) -> Tensor:
    """Return x of the first training rows, at most so many: the same at every step."""
    return rows.take(np.stack([part.train[:most] for part in rows.splits]))[0]


def weights(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the base network's linear layers from first to last, (R, inputs, outputs) each."""
    return [module.weight for module in network.modules() if isinstance(module, ReplicaLinear)]


def loss_and_gradients(
    network: nn.Module, batch: tuple[Tensor, Tensor], rows: Rows, parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, list[Tensor]]:
    """Return each replica's loss, (R,), and its gradients with respect to the parameters; `.grad` is left alone.

    The random numbers of a forward (those of dropout) are the same in every call, so that losses at other weights
    differ by the weights alone.
    """
    x, y = batch
    torch.manual_seed(0)
    loss = losses(network(x), y, rows.data)
    gradients = torch.autograd.grad(loss.sum(), parameters, allow_unused=True, materialize_grads=True)
    return loss.detach(), list(gradients)


@torch.no_grad()
def put(parameters: Sequence[nn.Parameter], values: Iterable[Tensor]) -> None:
    """Give the parameters other values, in place."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def flat(network: nn.Module, tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors shaped like `network.parameters()` with all numbers of a replica in its row, (R, P)."""
    if not isinstance(network, SideBySide):
        return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
    each = len(tensors) // len(network.models)
    models = (tensors[start : start + each] for start in range(0, len(tensors), each))
    return torch.stack([torch.cat([tensor.flatten() for tensor in of_model]) for of_model in models])


def norms(tensor: Tensor) -> Tensor:
    """Return the Euclidean norm of each replica's part of a tensor, (R,), in float64, where no square underflows."""
    return tensor.flatten(1).double().square().sum(1).sqrt()
