"""The Keras layer behind the signature of the contract suite, in every mode that a backend runs it in."""

from functools import cache
from typing import Any, NamedTuple

import keras
from differentiate import BACKEND, MODES, UNCOMPILED, Call, moving, stepping

from batchnorm.keras import BatchNormalization
from regimes import EPSILON, Case, data


class Way(NamedTuple):
    """How the layer is run, and the dtypes that are tried so: compiling takes a second a case."""

    fused: bool | None
    mode: str
    dtypes: tuple[str, ...]


DTYPES = ("float16", "bfloat16", "float32") + (() if BACKEND == "jax" else ("float64",))  # JAX has none by default
WAYS = {"keras": Way(None, UNCOMPILED, DTYPES)}
WAYS |= {f"keras-{mode}": Way(None, mode, ("float32",)) for mode in MODES[1:]}
if BACKEND == "torch":
    WAYS["keras-ops"] = Way(False, UNCOMPILED, DTYPES)


@cache
def _prepared(shape: tuple[int, ...], options: tuple[Any, ...], mode: str, training: bool) -> tuple[Any, Any]:
    """Return a layer and its step: one program for all values of one shape."""
    given = dict(options)
    layer = BatchNormalization(**given)
    layer.build(shape)
    return layer, stepping(layer, mode, training=training)


def run(case: Case, training: bool, way: Way) -> list[Any]:
    """Return the fields of a `Result`."""
    d = data(case)
    options = {
        "axis": case.axis,
        "momentum": 1.0 - case.momentum,
        "epsilon": EPSILON,
        "center": d.beta is not None,
        "scale": d.gamma is not None,
        "fused": way.fused,
        "dtype": case.dtype,
        "running_variance": case.estimator,
    }
    layer, step = _prepared(d.x.shape, tuple(options.items()), way.mode, training)
    layer.set_weights([*(p for p in (d.gamma, d.beta) if p is not None), d.running_mean, d.running_var])
    done: Call = step(d.x, d.dy, dtype=case.dtype)
    gradients = iter(done.gradients)
    learned = [None if p is None else next(gradients) for p in (d.gamma, d.beta)]
    found = [done.y, done.dx, *learned, *moving(layer).values()]
    assert keras.backend.standardize_dtype(layer(d.x).dtype) == case.dtype
    return found
