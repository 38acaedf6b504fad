"""Forwards that are repeated in the backward: activation checkpointing computes again what it has not kept."""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.statistics import Running
from batchnorm.torch.tracing import in_backward

CALLS = 32  # how many calls of one layer may lie between a forward and its repetition
ALIKE = 2.0**-6  # inputs that differ by more, relative to their size, are not one input computed twice


class CallRecord(NamedTuple):
    """The running statistics and the step before a call of the layer, and the mean of each of its samples."""

    fingerprint: Tensor
    running: Running
    step: Tensor | None


class RecomputeCache:
    """The statistics before the last calls of a layer, for when one is repeated: by then they have been updated.

    A repeated call is known by its input, by the mean of each sample, since a layer may be called several times in a
    step; of several alike it is the last.
    """

    def __init__(self) -> None:
        self._calls: deque[CallRecord] = deque(maxlen=CALLS)

    def lookup(self, x: Tensor, running: Running, step: Tensor | None) -> tuple[Running, Tensor | None]:
        """Return the running statistics and the step to train with: of the first forward, where this repeats one."""
        if torch.compiler.is_compiling() or x.numel() == 0:
            return running, step
        fingerprint = x.detach().mean(dim=tuple(range(1, x.ndim)))
        if in_backward():
            return self._find(fingerprint, running, step)
        before = Running(*(None if b is None else b.clone() for b in running))
        self._calls.append(CallRecord(fingerprint, before, None if step is None else step.clone()))
        return running, step

    def _find(self, fingerprint: Tensor, running: Running, step: Tensor | None) -> tuple[Running, Tensor | None]:
        calls = [call for call in reversed(self._calls) if call.fingerprint.shape == fingerprint.shape]
        apart = [float((call.fingerprint - fingerprint).abs().nansum()) for call in calls]
        if apart and min(apart) <= ALIKE * float(fingerprint.abs().nansum()):
            nearest = calls[apart.index(min(apart))]
            return nearest.running, nearest.step
        if running.renorm_mean is not None:
            raise BatchNormError(
                "a checkpointed forward is repeated in the backward, and what it found under `renorm` is forgotten: "
                f"more than {CALLS} calls of the layer lie between (run the backward of some of them first)"
            )
        return running, step
