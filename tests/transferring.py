"""Layers of several frameworks behind one face: what `test_surgery_transfer` compares.

KERAS_BACKEND=tensorflow python transferring.py torch batchnorm keras tf_keras nnx
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS, FEATURES, STEPS, RATE = 20_000, 4, 5, 0.1
Array = NDArray[Any]


def data(step: int) -> tuple[Array, Array]:
    """Return a batch and what each output is multiplied by in the loss."""
    drawn = np.random.default_rng(step)
    x = drawn.normal(2, 3, (ROWS, FEATURES)).astype(np.float32) * np.arange(1, FEATURES + 1, dtype=np.float32)
    return x, drawn.normal(size=(ROWS, FEATURES)).astype(np.float32) / ROWS


class Torch:
    def __init__(self, config: dict[str, Any], kind: str) -> None:
        import torch

        from batchnorm.torch import BatchNorm

        self.torch = torch
        self.layer = (torch.nn.BatchNorm1d if kind == "torch" else BatchNorm)(**config)
        self.source: Any = self.layer

    def load(self, state: Any) -> None:
        self.layer.load_state_dict(state)

    def infer(self, x: Array) -> Array:
        with self.torch.no_grad():
            return self.layer.eval()(self.torch.from_numpy(x)).numpy()

    def step(self, x: Array, weights: Array) -> None:
        self.layer.zero_grad()
        (self.layer.train()(self.torch.from_numpy(x)) * self.torch.from_numpy(weights)).sum().backward()
        with self.torch.no_grad():
            for parameter in self.layer.parameters():
                parameter -= RATE * parameter.grad


class Keras:
    def __init__(self, config: dict[str, Any], kind: str) -> None:
        if kind == "tf_keras":
            import tensorflow as tf
            import tf_keras as keras
        else:
            import keras
            import tensorflow as tf
        self.tf, self.classic = tf, kind == "tf_keras"
        self.layer = keras.layers.BatchNormalization(**config)
        self.layer.build((None, FEATURES))
        self.source: Any = self.layer

    def load(self, state: Any) -> None:
        self.layer.set_weights(state)

    def infer(self, x: Array) -> Array:
        return np.asarray(self.layer(x, training=False))

    def step(self, x: Array, weights: Array) -> None:
        with self.tf.GradientTape() as tape:
            loss = self.tf.reduce_sum(self.layer(x, training=True) * weights)
        learned = self.layer.trainable_variables
        values = [v if self.classic else v.value for v in learned]
        for variable, gradient in zip(learned, tape.gradient(loss, values), strict=True):
            variable.assign(variable - RATE * gradient)


class Flax:
    def __init__(self, config: dict[str, Any], kind: str) -> None:
        import jax
        from flax import nnx

        self.jax, self.nnx = jax, nnx
        self.layer = nnx.BatchNorm(**({"num_features": FEATURES} | config), rngs=nnx.Rngs(0))
        self.source: Any = self.layer

    def load(self, state: Any) -> None:
        for name, value in state.items():
            getattr(self.layer, name)[...] = self.jax.numpy.asarray(value)

    def infer(self, x: Array) -> Array:
        return np.asarray(self.layer(x, use_running_average=True))

    def step(self, x: Array, weights: Array) -> None:
        def loss(layer: Any) -> Any:
            return (layer(x, use_running_average=False) * weights).sum()

        gradient = self.nnx.grad(loss)(self.layer)
        for name in ("scale", "bias"):
            parameter = getattr(self.layer, name)
            parameter[...] = parameter[...] - RATE * gradient[name][...]


KINDS: dict[str, Any] = {"torch": Torch, "batchnorm": Torch, "keras": Keras, "tf_keras": Keras, "nnx": Flax}
START: dict[str, dict[str, Any]] = {
    "torch": {"num_features": FEATURES, "momentum": 0.2, "eps": 1e-3},
    "batchnorm": {"num_features": FEATURES, "momentum": 0.2, "eps": 1e-3},
    "keras": {"momentum": 0.8, "epsilon": 2e-3},
    "tf_keras": {"momentum": 0.7, "epsilon": 3e-3},
    "nnx": {"momentum": 0.6, "epsilon": 4e-3},
}


def main() -> None:
    """Train a layer of each framework here a little, hand it to the others, and tell how far these are off."""
    from batchnorm.surgery import transfer

    names = sys.argv[1:]
    for source in names:
        for target in names:
            if source == target:
                continue
            first = KINDS[source](START[source], source)
            for step in range(3):
                first.step(*data(step))
            found = transfer(first.source, source, target)
            second = KINDS[target](found.config, target)
            second.load(found.state)
            x, _ = data(99)
            inference = float(np.abs(first.infer(x) - second.infer(x)).max())
            for step in range(10, 10 + STEPS):
                first.step(*data(step))
                second.step(*data(step))
            trained = float(np.abs(first.infer(x) - second.infer(x)).max())
            print("found", source, target, inference, trained, float(np.abs(first.infer(x)).max()), flush=True)


if __name__ == "__main__":
    main()
