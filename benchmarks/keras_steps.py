"""A training step of a Keras layer as a backend runs it: the very function that is timed is the one that is checked.

A step takes x and dy and returns y, the gradients of x and of the trainable weights, and the moving statistics. What is
compiled adds in another order than what is not, so that checking the one says nothing about the other.
"""

from collections.abc import Callable
from typing import Any

import keras

BACKEND = keras.backend.backend()
Step = Callable[[Any, Any], list[Any]]


def _by_torch(layer: Any, mode: str) -> Step:
    import torch

    del mode

    def step(x: Any, dy: Any) -> list[Any]:
        x = x.detach().requires_grad_()
        y = layer(x, training=True)
        return [y.detach(), *torch.autograd.grad(y, [x, *(v.value for v in layer.trainable_variables)], dy)]

    return step


def _by_tensorflow(layer: Any, mode: str) -> Step:
    import tensorflow as tf

    @tf.function(jit_compile=mode == "XLA")
    def step(x: Any, dy: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return [y, *tape.gradient(y, [x, *(v.value for v in layer.trainable_variables)], dy)]

    def run(x: Any, dy: Any) -> list[Any]:
        return [value.numpy() for value in step(x, dy)]  # waits for them; shares their memory

    return run


def _by_jax(layer: Any, mode: str) -> Step:
    import jax

    def pulled(x: Any, dy: Any, trained: Any, state: Any) -> Any:
        y, pull, state = jax.vjp(
            lambda x, t: layer.stateless_call(t, state, x, training=True), x, trained, has_aux=True
        )
        dx, gradients = pull(dy)
        return [y, dx, *gradients], state

    def valued(x: Any, dy: Any, trained: Any, state: Any) -> Any:
        def loss(x: Any, trained: Any) -> Any:
            y, after = layer.stateless_call(trained, state, x, training=True)
            return (y * dy).sum(), (y, after)

        (_, (y, after)), (dx, gradients) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, trained)
        return [y, dx, *gradients], after

    compiled = jax.jit({"jit": pulled, "value_and_grad": valued}[mode])
    trained, state = ([v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables))
    return lambda x, dy: jax.block_until_ready(compiled(x, dy, trained, state))[0]


MODES = {"torch": ("as it is",), "tensorflow": ("XLA", "no XLA"), "jax": ("jit", "value_and_grad")}[BACKEND]


def step_of(layer: Any, mode: str = MODES[0]) -> Step:
    """Return the step of a layer that is built; `mode` is one of `MODES`, of which `fit` takes the first."""
    return {"torch": _by_torch, "tensorflow": _by_tensorflow, "jax": _by_jax}[BACKEND](layer, mode)
