"""One call of a Keras layer on the backend at hand: its output, its gradients, and its state moved on."""

from collections.abc import Callable
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


# A step: x and dy -> y, and the gradients of x and of the trainable weights; it moves the state of the layer.
Step = Callable[[Any, Any], tuple[Any, list[Any]]]
UNCOMPILED = "uncompiled"
MODES = {  # the last of each is what `fit` runs by default on an accelerator
    "tensorflow": (UNCOMPILED, "graph", "xla"),
    "jax": (UNCOMPILED, "value_and_grad", "jit"),
    "torch": (UNCOMPILED,),  # torch.compile is tested on the torch layer, which runs here
}[BACKEND]


def _by_tape(layer: Any, mode: str, call: dict[str, Any]) -> Step:
    import tensorflow as tf

    def step(x: Any, dy: Any) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **call)
            loss = tf.reduce_sum(y * tf.cast(dy, y.dtype))
        trained = [v.value for v in layer.trainable_variables]
        return y, tape.gradient(loss, [x, *trained])

    return step if mode == UNCOMPILED else tf.function(step, jit_compile=mode == "xla")


def _by_jax(layer: Any, mode: str, call: dict[str, Any]) -> Step:
    import jax

    def pulled(x: Any, dy: Any, trained: list[Any], state: list[Any]) -> tuple[Any, Any, Any]:
        run = lambda x, trained: layer.stateless_call(trained, state, x, **call)  # noqa: E731
        y, pull, after = jax.vjp(run, x, trained, has_aux=True)
        return y, pull(dy.astype(y.dtype)), after

    def valued(x: Any, dy: Any, trained: list[Any], state: list[Any]) -> tuple[Any, Any, Any]:
        def loss(x: Any, trained: list[Any]) -> tuple[Any, Any]:
            y, after = layer.stateless_call(trained, state, x, **call)
            return (y * dy.astype(y.dtype)).sum(), (y, after)

        (_, (y, after)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, trained)
        return y, gradients, after

    run = {UNCOMPILED: pulled, "jit": jax.jit(pulled), "value_and_grad": jax.jit(valued)}[mode]

    def step(x: Any, dy: Any) -> tuple[Any, list[Any]]:
        trained, state = ([v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables))
        y, (dx, gradients), after = run(x, dy, trained, state)
        for variable, value in zip(layer.non_trainable_variables, after, strict=True):
            variable.assign(value)
        return y, [dx, *gradients]

    return step


def _by_autograd(layer: Any, mode: str, call: dict[str, Any]) -> Step:
    import torch

    assert mode == UNCOMPILED

    def step(x: Any, dy: Any) -> tuple[Any, list[Any]]:
        leaf = x.detach().clone().requires_grad_()
        y = layer(leaf, **call)
        trained = [v.value for v in layer.trainable_variables]
        return y, list(torch.autograd.grad(y, [leaf, *trained], dy.to(y.dtype)))

    return step


def stepping(layer: Any, mode: str = UNCOMPILED, **call: Any) -> Callable[..., Call]:
    """Return a function of x and dy that calls the layer and pulls dy back, in one program where it is compiled."""
    step = {"tensorflow": _by_tape, "jax": _by_jax, "torch": _by_autograd}[BACKEND](layer, mode, call)

    def run(x: Array, dy: Array, *, dtype: str = "float32") -> Call:
        if not layer.built:
            layer.build(x.shape)
        precise = "float64" if dtype == "float64" else "float32"
        y, gradients = step(ops.convert_to_tensor(x, dtype), ops.convert_to_tensor(dy, precise))
        dx, *others = (numpy(g) for g in gradients)
        return Call(numpy(y), dx, others)

    return run


def called(layer: Any, x: Array, dy: Array, *, dtype: str = "float32", mode: str = UNCOMPILED, **call: Any) -> Call:
    """Call a layer on x and pull dy back."""
    return stepping(layer, mode, **call)(x, dy, dtype=dtype)


def moving(layer: Any) -> dict[str, Array]:
    """Return the moving statistics by name."""
    return {v.name: numpy(v) for v in layer.non_trainable_variables}
