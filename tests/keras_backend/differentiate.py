"""One call of a Keras layer on the backend at hand: its output, its gradients, and its state moved on."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

BACKEND = keras.backend.backend()
Array = NDArray[Any]


class Call(NamedTuple):
    y: Array
    dx: Array
    gradients: list[Array]  # of the trainable weights, in their order


def numpy(tensor: Any) -> Array:
    precise = ops.cast(ops.stop_gradient(tensor), "float64" if BACKEND != "jax" else "float32")
    found: Array = ops.convert_to_numpy(precise)
    return found.astype(np.float64)


def _by_tape(layer: Any, x: Any, dy: Array, call: dict[str, Any]) -> tuple[Any, list[Any]]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, **call)
        loss = tf.reduce_sum(y * tf.cast(dy, y.dtype))
    trained = [v.value for v in layer.trainable_variables]
    return y, tape.gradient(loss, [x, *trained])


def _by_vjp(layer: Any, x: Any, dy: Array, call: dict[str, Any]) -> tuple[Any, list[Any]]:
    import jax

    def apply(x: Any, trained: list[Any]) -> tuple[Any, Any]:
        return layer.stateless_call(trained, [v.value for v in layer.non_trainable_variables], x, **call)

    trained = [v.value for v in layer.trainable_variables]
    y, pull, state = jax.vjp(apply, x, trained, has_aux=True)
    for variable, value in zip(layer.non_trainable_variables, state, strict=True):
        variable.assign(value)
    dx, gradients = pull(jax.numpy.asarray(dy, y.dtype))
    return y, [dx, *gradients]


def _by_autograd(layer: Any, x: Any, dy: Array, call: dict[str, Any]) -> tuple[Any, list[Any]]:
    import torch

    leaf = x.detach().clone().requires_grad_()
    y = layer(leaf, **call)
    trained = [v.value for v in layer.trainable_variables]
    return y, list(torch.autograd.grad(y, [leaf, *trained], torch.tensor(dy).to(y.dtype)))


def called(layer: Any, x: Array, dy: Array, *, dtype: str = "float32", **call: Any) -> Call:
    """Call a layer on x and pull dy back."""
    if not layer.built:
        layer.build(x.shape)
    way = {"tensorflow": _by_tape, "jax": _by_vjp, "torch": _by_autograd}[BACKEND]
    y, gradients = way(layer, ops.convert_to_tensor(x, dtype), dy, call)
    dx, *others = (numpy(g) for g in gradients)
    return Call(numpy(y), dx, others)


def moving(layer: Any) -> dict[str, Array]:
    """Return the moving statistics by name."""
    return {v.name: numpy(v) for v in layer.non_trainable_variables}
