"""Keras' own layer on TensorFlow, in a tf.function without XLA. Features last, as Keras has them."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from batchnorm.bench.arrays import Arrays
from batchnorm.bench.cases import Case
from batchnorm.bench.prepared import Prepared
from batchnorm.bench.truth import EPS, Outputs, checked_features

tensorflow: Any = tf


def start(threads: int) -> dict[str, str]:
    """Set the number of threads; return the versions of what runs here."""
    tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    return {"keras": keras.__version__, "tensorflow": tensorflow.__version__}


def forget() -> None:
    """Drop what was made for the last case."""
    keras.backend.clear_session()


def copies(case: Case, given: Arrays, threads: int) -> dict[str, Prepared]:
    """Return none: the roofline is measured beside torch."""
    del case, given, threads
    return {}


def prepare(name: str, case: Case, given: Arrays) -> Prepared:
    """Make the layer ready."""
    del name
    op = case.operation
    layer: Any = keras.layers.BatchNormalization(axis=-1, epsilon=EPS, momentum=0.9)
    layer.build(case.in_memory)
    layer.set_weights([given.gamma, given.beta, given.mean, given.var])
    x, dy, residual = (tensorflow.constant(values) for values in (given.x, given.dy, given.residual))

    def forward(x: Any, residual: Any) -> Any:
        y = layer(x, training=op.training)
        y = y + residual if op.add else y
        return tensorflow.nn.relu(y) if op.relu else y

    @tensorflow.function(jit_compile=False)
    def step(x: Any, residual: Any, dy: Any) -> Any:
        if not op.backward:
            return [forward(x, residual)]
        with tensorflow.GradientTape() as tape:
            tape.watch([x, residual])
            y = forward(x, residual)
        wanted = [x, layer.gamma.value, layer.beta.value, *([residual] if op.add else [])]
        return [y, *tape.gradient(y, wanted, dy)]

    def run() -> list[Any]:
        return [value.numpy() for value in step(x, residual, dy)]  # waits for them; shares their memory

    return Prepared(run, _outputs(run, case))


def _outputs(run: Callable[[], list[Any]], case: Case) -> Callable[[], Outputs]:
    def outputs() -> Outputs:
        names = ("y", "dx", "dgamma", "dbeta", "dresidual")
        at = checked_features(case)
        return {name: np.asarray(value)[..., at] for name, value in zip(names, run(), strict=False)}

    return outputs
