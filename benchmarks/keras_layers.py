"""Time a training step of the Keras layer beside Keras' own: interleaved, checked against float64 before it is timed.

    KERAS_BACKEND=torch python benchmarks/keras_layers.py     # or tensorflow, or jax

Prints ratios to keras.layers.BatchNormalization. The step that is checked is the one that is timed. TensorFlow and JAX
run compiled by XLA, PyTorch as it is, which is how `fit` runs each of them by default.
"""

import platform
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops
from keras_steps import BACKEND, Step, step_of
from rich.console import Console
from rich.progress import track
from rich.table import Table

from batchnorm import reference
from batchnorm.bench.timing import interleaved
from batchnorm.keras import BatchNormalization

SHAPES = [(64, 3), (256, 512), (4096, 1024), (32, 56, 56, 64), (32, 14, 14, 256), (32, 7, 7, 512)]
ROUNDS = 15
CONTENDERS: dict[str, Callable[[], Any]] = {
    "keras": keras.layers.BatchNormalization,
    "batchnorm": BatchNormalization,
    **({"keras.ops": lambda: BatchNormalization(fused=False)} if BACKEND == "torch" else {}),
}


def _error(step: Step, x: np.ndarray, dy: Any, mean: float) -> float:
    """Return the largest error of the output of a step against float64, the mean of x being that many of its σ."""
    shifted = x / x.std() + np.float32(mean)
    y = ops.convert_to_numpy(step(ops.convert_to_tensor(shifted), dy)[0])
    return float(np.abs(y - reference.train(shifted, eps=1e-3, axis=-1).y).max())


def main() -> None:
    table = Table(title=f"forward + backward, float32, Keras {keras.__version__} on {BACKEND}, {platform.machine()}")
    table.add_column("shape", justify="right")
    for name in CONTENDERS:
        for column in ("min, median ms", "error at μ/σ = 1, 10⁶"):
            table.add_column(f"{name}:\n{column}", justify="right")
    for name in [*CONTENDERS][1:]:
        table.add_column(f"keras ÷\n{name}", justify="right")
    rng = np.random.default_rng(0)
    for shape in track(SHAPES, description="timing", console=Console(stderr=True)):
        x, dy = (rng.normal(3.0, 2.0, shape).astype(np.float32) for _ in range(2))
        steps: dict[str, Step] = {}
        for name, contender in CONTENDERS.items():
            layer = contender()
            layer.build(shape)
            steps[name] = step_of(layer)
        given = ops.convert_to_tensor(x), ops.convert_to_tensor(dy)
        errors = [", ".join(f"{_error(step, x, given[1], mean):.0e}" for mean in (1.0, 1e6)) for step in steps.values()]
        timed = {name: partial(step, *given) for name, step in steps.items()}
        taken = interleaved(timed, ROUNDS)
        median = {name: statistics.median(t) for name, t in taken.items()}
        times = [f"{1e3 * min(t):.3g}, {1e3 * median[name]:.3g}" for name, t in taken.items()]
        cells = [cell for pair in zip(times, errors, strict=True) for cell in pair]
        ratios = [f"{median['keras'] / median[name]:.2f}×" for name in [*CONTENDERS][1:]]
        table.add_row("×".join(map(str, shape)), *cells, *ratios)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
