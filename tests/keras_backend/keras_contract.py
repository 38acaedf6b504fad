"""The Keras layer behind the signature of the contract suite."""

from typing import Any

import keras
from differentiate import BACKEND, called, moving

from batchnorm.keras import BatchNormalization
from regimes import EPSILON, Case, data

DTYPES = ("float16", "bfloat16", "float32") + (() if BACKEND == "jax" else ("float64",))  # JAX has none by default
WAYS: dict[str, bool | None] = {"keras": None, **({"keras-ops": False} if BACKEND == "torch" else {})}


def run(case: Case, training: bool, fused: bool | None) -> list[Any]:
    """Return the fields of a `Result`."""
    d = data(case)
    layer = BatchNormalization(
        case.axis,
        1.0 - case.momentum,
        EPSILON,
        d.beta is not None,
        d.gamma is not None,
        fused=fused,
        dtype=case.dtype,
        running_variance=case.estimator,
    )
    layer.build(d.x.shape)
    values = [*(p for p in (d.gamma, d.beta) if p is not None), d.running_mean, d.running_var]
    layer.set_weights(values)
    done = called(layer, d.x, d.dy, dtype=case.dtype, training=training)
    assert keras.backend.standardize_dtype(layer(d.x).dtype) == case.dtype
    gradients = iter(done.gradients)
    learned = [None if p is None else next(gradients) for p in (d.gamma, d.beta)]
    return [done.y, done.dx, *learned, *moving(layer).values()]
