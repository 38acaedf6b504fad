"""The torch front-end, where PyTorch is behind Keras: the one door through which a front-end knows another.

Its backward is its own, and keeps x and the moments and nothing else.
"""

from typing import Any

from torch import distributed

from batchnorm.errors import BatchNormError
from batchnorm.statistics import Array, Moments, Running
from batchnorm.steps import ByBatch, Inputs, Recipe
from batchnorm.torch import normalize
from batchnorm.torch.recompute import Ledger, in_backward
from batchnorm.torch.snapshot import snapshot
from batchnorm.torch.transforms import readable, transforming

__all__ = ["by_batch", "by_running", "found", "in_backward", "in_one_process", "readable"]

MOVED = ("mean", "var", "renorm_mean", "renorm_stddev")
by_running = normalize.by_running


def by_batch(inputs: Inputs, recipe: Recipe) -> tuple[Array, Moments]:
    """Normalise x by its own statistics; what the backward reads of the moving ones are copies, as they move first."""
    read = {name: getattr(inputs, name) for name in MOVED}
    kept = {name: None if value is None else snapshot(value) for name, value in read.items()}
    return normalize.by_batch(inputs._replace(**kept), recipe)


def found(layer: Any, x: Array, running: Running, step: Array | None) -> tuple[Running, Array | None]:
    """Return the statistics and the step to train with: those of the first forward, where this repeats one."""
    if transforming():
        return running, step
    if layer.ledger is None:
        layer.ledger = Ledger()
    return layer.ledger.seen(x, running, step)


def in_one_process(way: ByBatch) -> ByBatch:
    """Return a way to normalise by the batch that raises in a group of several processes."""

    def checked(inputs: Inputs, recipe: Recipe) -> tuple[Array, Moments]:
        size = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if size > 1:
            raise BatchNormError(
                f"`synchronized=True` over {size} processes of PyTorch is not built yet (synchronized=False normalises "
                "each process's own batch)"
            )
        return way(inputs, recipe)

    return checked
