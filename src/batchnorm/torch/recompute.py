"""Forwards that are repeated in the backward: activation checkpointing computes again what it has not kept."""

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.statistics import Running
from batchnorm.torch.snapshot import tracing

CALLS = 32  # how many calls of one layer may lie between a forward and its repetition
ALIKE = 2.0**-6  # inputs that differ by more, relative to their size, are not one input computed twice


def in_backward() -> bool:
    """Return whether this runs inside a backward pass: a forward there repeats one that has been counted."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


@torch.library.custom_op("batchnorm::first_forward", mutates_args=())
def _outside_backward(x: Tensor) -> Tensor:
    first = torch._C._current_graph_task_id() == -1  # pyright: ignore
    return torch.full((), first, dtype=torch.bool, device=x.device)


@_outside_backward.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.bool, device=x.device)


@_outside_backward.register_vmap
def _(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, None]:
    return _outside_backward(x), None


def first_forward(x: Tensor) -> Tensor | None:
    """Return whether this is no repetition, where a compiled graph can only ask when it runs; None elsewhere."""
    return _outside_backward(x) if torch.compiler.is_compiling() and not tracing() else None


class Found(NamedTuple):
    """The running statistics and the step that a call of the layer has found, and the mean of each of its samples."""

    mark: Tensor
    running: Running
    step: Tensor | None


class Ledger:
    """What the last calls of a layer have found, for when one of them is repeated: by then the statistics have moved.

    A repeated call is known by its input, by the mean of each sample, since a layer may be called several times in a
    step; of several alike it is the last.
    """

    def __init__(self) -> None:
        self._calls: deque[Found] = deque(maxlen=CALLS)

    def seen(self, x: Tensor, running: Running, step: Tensor | None) -> tuple[Running, Tensor | None]:
        """Return the running statistics and the step to train with: of the first forward, where this repeats one."""
        if torch.compiler.is_compiling() or x.numel() == 0:
            return running, step
        mark = x.detach().mean(dim=tuple(range(1, x.ndim)))
        if in_backward():
            return self._find(mark, running, step)
        kept = Running(*(None if b is None else b.clone() for b in running))
        self._calls.append(Found(mark, kept, None if step is None else step.clone()))
        return running, step

    def _find(self, mark: Tensor, running: Running, step: Tensor | None) -> tuple[Running, Tensor | None]:
        calls = [call for call in reversed(self._calls) if call.mark.shape == mark.shape]
        apart = [float((call.mark - mark).abs().nansum()) for call in calls]
        if apart and min(apart) <= ALIKE * float(mark.abs().nansum()):
            nearest = calls[apart.index(min(apart))]
            return nearest.running, nearest.step
        if running.renorm_mean is not None:
            raise BatchNormError(
                "a checkpointed forward is repeated in the backward, and what it found under `renorm` is forgotten: "
                f"more than {CALLS} calls of the layer lie between (run the backward of some of them first)"
            )
        return running, step
