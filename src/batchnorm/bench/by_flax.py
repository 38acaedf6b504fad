"""flax.nnx.BatchNorm in jax.jit, differentiated by JAX. Features last, as Flax has them."""

from typing import Any

import flax
import jax
import numpy as np
from flax import nnx

from batchnorm.bench.arrays import Arrays
from batchnorm.bench.cases import Case
from batchnorm.bench.prepared import Prepared
from batchnorm.bench.truth import EPS, Outputs, checked_features


def start(threads: int) -> dict[str, str]:
    """Return the versions of what runs here; XLA has as many threads as there are processors to run on."""
    del threads
    return {"jax": jax.__version__, "flax": flax.__version__}


def forget() -> None:
    """Drop what was compiled for the last case."""
    jax.clear_caches()


def copies(case: Case, given: Arrays, threads: int) -> dict[str, Prepared]:
    """Return none: the roofline is measured beside torch."""
    del case, given, threads
    return {}


def _layer(case: Case, given: Arrays) -> Any:
    layer: Any = nnx.BatchNorm(
        case.features, use_running_average=not case.operation.training, momentum=0.9, epsilon=EPS, rngs=nnx.Rngs(0)
    )
    for name, values in {"scale": given.gamma, "bias": given.beta, "mean": given.mean, "var": given.var}.items():
        getattr(layer, name)[...] = jax.numpy.asarray(values)
    return layer


def prepare(name: str, case: Case, given: Arrays) -> Prepared:
    """Make the layer ready."""
    del name
    op = case.operation
    graph, learned, state = nnx.split(_layer(case, given), nnx.Param, ...)
    x, dy, residual = (jax.numpy.asarray(values) for values in (given.x, given.dy, given.residual))

    def forward(x: Any, learned: Any, residual: Any, state: Any) -> tuple[Any, Any]:
        layer = nnx.merge(graph, learned, state, copy=True)
        y = layer(x)
        y = y + residual if op.add else y
        return jax.nn.relu(y) if op.relu else y, nnx.split(layer, nnx.Param, ...)[2]

    @jax.jit
    def step(x: Any, learned: Any, residual: Any, state: Any, dy: Any) -> Any:
        if not op.backward:
            return forward(x, learned, residual, state)

        def differentiable(x: Any, learned: Any, residual: Any) -> Any:
            return forward(x, learned, residual, state)

        y, pull, seen = jax.vjp(differentiable, x, learned, residual, has_aux=True)
        dx, dlearned, dresidual = pull(dy)
        return y, seen, dx, dlearned, dresidual if op.add else None

    def run() -> Any:
        return jax.block_until_ready(step(x, learned, residual, state, dy))

    def outputs() -> Outputs:
        y, _, *gradients = run()
        found = {"y": y}
        if op.backward:
            dx, dlearned, dresidual = gradients
            found |= {"dx": dx, "dgamma": dlearned["scale"][...], "dbeta": dlearned["bias"][...]}
            found |= {"dresidual": dresidual} if op.add else {}
        return {name: np.asarray(value)[..., checked_features(case)] for name, value in found.items()}

    return Prepared(run, outputs)
