"""Time a training step of the Keras layer beside Keras' own: interleaved, checked against float64 before it is timed.

    KERAS_BACKEND=torch python benchmarks/keras_layers.py     # or tensorflow, or jax

Prints ratios to keras.layers.BatchNormalization. TensorFlow and JAX run compiled by XLA, PyTorch as it is, which is how
`fit` runs each of them by default.
"""

import platform
import statistics
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from rich.console import Console
from rich.progress import track
from rich.table import Table

from batchnorm import reference
from batchnorm.bench.timing import interleaved
from batchnorm.keras import BatchNormalization

SHAPES = [(64, 3), (256, 512), (4096, 1024), (32, 56, 56, 64), (32, 14, 14, 256), (32, 7, 7, 512)]
ROUNDS = 15
BACKEND = keras.backend.backend()
CONTENDERS: dict[str, Callable[[], Any]] = {
    "keras": keras.layers.BatchNormalization,
    "batchnorm": BatchNormalization,
    **({"keras.ops": lambda: BatchNormalization(fused=False)} if BACKEND == "torch" else {}),
}


def _by_torch(layer: Any, x: Any, dy: Any) -> Callable[[], None]:
    x = x.requires_grad_()

    def step() -> None:
        x.grad = None
        layer(x, training=True).backward(dy)

    return step


def _by_tensorflow(layer: Any, x: Any, dy: Any) -> Callable[[], None]:
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def step() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, [x, *(v.value for v in layer.trainable_variables)], dy)

    return lambda: step()[0].numpy()


def _by_jax(layer: Any, x: Any, dy: Any) -> Callable[[], None]:
    import jax

    @jax.jit
    def step(x: Any, trained: Any, state: Any, dy: Any) -> Any:
        _, pull, state = jax.vjp(
            lambda x, t: layer.stateless_call(t, state, x, training=True), x, trained, has_aux=True
        )
        return pull(dy), state

    trained, state = ([v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables))
    return lambda: jax.block_until_ready(step(x, trained, state, dy))


def _error(layer: Any, x: np.ndarray, mean: float) -> float:
    """Return the largest error of the training output against float64, the mean of x being that many of its σ."""
    shifted = x / x.std() + np.float32(mean)
    y = ops.convert_to_numpy(ops.stop_gradient(layer(shifted, training=True)))
    return float(np.abs(y - reference.train(shifted, eps=1e-3, axis=-1).y).max())


def main() -> None:
    table = Table(title=f"forward + backward, float32, Keras {keras.__version__} on {BACKEND}, {platform.machine()}")
    table.add_column("shape", justify="right")
    for name in CONTENDERS:
        for column in ("min, median ms", "error at μ/σ = 1, 10⁶"):
            table.add_column(f"{name}:\n{column}", justify="right")
    for name in [*CONTENDERS][1:]:
        table.add_column(f"keras ÷\n{name}", justify="right")
    make = {"torch": _by_torch, "tensorflow": _by_tensorflow, "jax": _by_jax}[BACKEND]
    rng = np.random.default_rng(0)
    for shape in track(SHAPES, description="timing", console=Console(stderr=True)):
        x, dy = (rng.normal(3.0, 2.0, shape).astype(np.float32) for _ in range(2))
        layers = {name: contender() for name, contender in CONTENDERS.items()}
        errors = [", ".join(f"{_error(layer, x, mean):.0e}" for mean in (1.0, 1e6)) for layer in layers.values()]
        steps = {n: make(layer, ops.convert_to_tensor(x), ops.convert_to_tensor(dy)) for n, layer in layers.items()}
        taken = interleaved(steps, ROUNDS)
        median = {name: statistics.median(t) for name, t in taken.items()}
        times = [f"{1e3 * min(t):.3g}, {1e3 * median[name]:.3g}" for name, t in taken.items()]
        cells = [cell for pair in zip(times, errors, strict=True) for cell in pair]
        ratios = [f"{median['keras'] / median[name]:.2f}×" for name in [*CONTENDERS][1:]]
        table.add_row("×".join(map(str, shape)), *cells, *ratios)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
