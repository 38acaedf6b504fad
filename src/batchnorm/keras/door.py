"""How a batch is normalised on the backend at hand: by keras.ops, or by the front-end made for the backend.

Both ways take the same inputs and give the same numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras

from batchnorm import kernels
from batchnorm.keras import namespace as xp
from batchnorm.keras.namespace import ops
from batchnorm.keras.replicas import over_replicas
from batchnorm.kernels.eager import working
from batchnorm.statistics import Array, Moments, Running, is_number
from batchnorm.steps import ByBatch, Inputs, Recipe, affine, batch_statistics, running_statistics

kernels.register(xp, cascade=keras.backend.backend() != "tensorflow")  # TensorFlow adds one after another on a CPU


class Door(NamedTuple):
    """What a layer needs of its backend.

    Attributes:
        name: Whose operations these are.
        by_batch: Normalise by the statistics of the batch; returns the output and the moments, without a gradient.
        by_running: Normalise by the running statistics.
        repeating: Whether a forward repeats one that has been counted, in the backward of a checkpointed part.
        found: The statistics and the step that such a forward has found at first: `(layer, x, running, step)`.
        readable: Whether the values of a tensor can be looked at now, without waiting for a device.
    """

    name: str
    by_batch: ByBatch
    by_running: Callable[[Inputs, Recipe], Array]
    readable: Callable[[Array], bool]
    repeating: Callable[[], bool] = lambda: False
    found: Callable[[Any, Array, Running, Any], tuple[Running, Any]] = lambda _layer, _x, running, step: (running, step)


def _by_batch(
    inputs: Inputs, recipe: Recipe, merge: Callable[[Moments], Moments] | None = None
) -> tuple[Array, Moments]:
    """Let the backend differentiate: x is cast once, so that the parts of its gradient are summed before rounding."""
    dtype, inputs = inputs.x.dtype, inputs._replace(x=working(inputs.x, xp))
    moments = kernels.select(inputs.x, recipe.plan, xp, weights=inputs.weights).moments(
        inputs.x, recipe.plan, inputs.weights
    )
    moments = moments if merge is None else merge(moments)
    constant = Moments(*(a if is_number(a) else ops.stop_gradient(a) for a in moments))
    y = affine(inputs, recipe, batch_statistics(inputs, recipe, moments, constant, xp), xp)
    return xp.astype(y, dtype), constant


def _by_running(inputs: Inputs, recipe: Recipe) -> Array:
    return affine(inputs, recipe, running_statistics(inputs, recipe, xp), xp)


def _is_eager(x: Array) -> bool:
    try:
        ops.convert_to_numpy(x)
    except Exception:  # what a tracer raises is its framework's own
        return False
    return True


def door(*, fused: bool | None, synchronized: bool) -> Door:
    """Return the way to normalise for a layer: the torch front-end's own where it may be, else keras.ops."""
    backend = keras.backend.backend()
    if backend == "torch":
        from batchnorm.keras import by_torch

        ours = by_torch.readable, by_torch.in_backward, by_torch.found
        way = Door("batchnorm.torch", by_torch.by_batch, by_torch.by_running, *ours)
        if fused is False:
            way = Door("keras.ops", _by_batch, _by_running, *ours)
        return way._replace(by_batch=by_torch.in_one_process(way.by_batch)) if synchronized else way
    if backend == "tensorflow" and synchronized:
        return Door("keras.ops", partial(_by_batch, merge=over_replicas), _by_running, _is_eager)
    return Door("keras.ops", _by_batch, _by_running, _is_eager)  # on JAX an array is that of all devices anyway
