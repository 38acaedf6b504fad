"""Every implementation of the layer there is, behind one signature: what the contract suite runs over.

To add one, write a function `(case, training) -> Result` and give it a line in `IMPLEMENTATIONS`.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from batchnorm import statistics
from batchnorm.layout import plan
from batchnorm.torch import BatchNorm, batch_norm
from namespaces import NAMESPACES, Namespace, to_numpy, to_torch
from regimes import EPSILON, Case, data
from tolerance import working

Array = NDArray[np.float64]


class Result(NamedTuple):
    """What one forward and one backward pass give, in float64; parameters and statistics in the parameters' shape."""

    y: Array
    dx: Array
    dgamma: Array | None
    dbeta: Array | None
    running_mean: Array
    running_var: Array


class Implementation(NamedTuple):
    name: str
    dtypes: tuple[str, ...]
    run: Callable[[Case, bool], Result]


def _by_kernel(namespace: Namespace, case: Case, training: bool) -> Result:
    """Put the eager kernel and the statistics together by hand."""
    d, xp, kernel = data(case), namespace.xp, namespace.kernel
    layout = plan(d.x.ndim, case.axis)
    kept = layout.kept_shape(d.x.shape)

    def enter(array: Array) -> Any:
        return namespace.array(array.reshape(kept).astype(working(case.dtype)), working(case.dtype))

    x, dy = (namespace.array(a, case.dtype) for a in (d.x, d.dy))
    running_mean, running_var = enter(d.running_mean), enter(d.running_var)
    gamma = None if d.gamma is None else enter(d.gamma)
    if training:
        moments = kernel.moments(x, layout)
        using = statistics.of_batch(moments, EPSILON, xp)
        observed = statistics.observed(moments, case.estimator, xp)
        running = statistics.Running(running_mean, running_var)
        running_mean, running_var = statistics.remembered(running, observed, case.momentum, xp)[:2]
    else:
        using = statistics.of_running(running_mean, running_var, EPSILON, xp)
    beta = None if d.beta is None else enter(d.beta)
    scale, shift = statistics.forward_scale(using, gamma), statistics.forward_shift(using, gamma, beta, xp)
    y = kernel.affine(x, using, scale, shift)
    sum_dy, sum_dy_centred = kernel.backward_reduce(dy, x, layout, using)
    coefficients = statistics.backward_coefficients(using, gamma, sum_dy, sum_dy_centred)
    dx = kernel.backward_elementwise(dy, x, using, coefficients)
    features = d.running_mean.shape
    dgamma, dbeta, mean, var = (
        to_numpy(a).reshape(features)
        for a in (statistics.gamma_gradient(using, sum_dy, sum_dy_centred), sum_dy, running_mean, running_var)
    )
    return Result(
        to_numpy(y), to_numpy(dx), None if gamma is None else dgamma, None if d.beta is None else dbeta, mean, var
    )


def _leaf(array: Array | None, dtype: str) -> torch.nn.Parameter | None:
    return None if array is None else torch.nn.Parameter(to_torch(array, dtype))


def _by_autograd(
    x: torch.Tensor, y: torch.Tensor, case: Case, parameters: list[torch.Tensor | None], running: list[torch.Tensor]
) -> Result:
    y.backward(to_torch(data(case).dy, case.dtype))
    assert x.grad is not None
    assert (y.dtype, x.grad.dtype) == (x.dtype, x.dtype)
    gradients = [None if p is None else to_numpy(p.grad) for p in parameters]
    return Result(to_numpy(y), to_numpy(x.grad), *gradients, *map(to_numpy, running))


def _by_torch_function(case: Case, training: bool) -> Result:
    d = data(case)
    x = to_torch(d.x, case.dtype).requires_grad_()
    running = [to_torch(r, working(case.dtype)) for r in (d.running_mean, d.running_var)]
    gamma, beta = _leaf(d.gamma, case.dtype), _leaf(d.beta, case.dtype)
    y = batch_norm(
        x,
        *running,
        gamma,
        beta,
        training,
        case.momentum,
        EPSILON,
        axis=case.axis,
        running_variance=case.estimator,
    )
    return _by_autograd(x, y, case, [gamma, beta], running)


def _by_torch_layer(case: Case, training: bool) -> Result:
    d = data(case)
    x = to_torch(d.x, case.dtype).requires_grad_()
    features = d.running_mean.shape if isinstance(case.axis, tuple) else d.running_mean.size
    options = {"axis": case.axis, "running_variance": case.estimator}
    layer = BatchNorm(features, EPSILON, case.momentum, affine=False, **options)
    layer.to(x.dtype).train(training)
    layer.weight, layer.bias = _leaf(d.gamma, case.dtype), _leaf(d.beta, case.dtype)
    layer.running_mean.copy_(to_torch(d.running_mean))
    layer.running_var.copy_(to_torch(d.running_var))
    return _by_autograd(x, layer(x), case, [layer.weight, layer.bias], [layer.running_mean, layer.running_var])


TORCH_DTYPES = ("float16", "bfloat16", "float32", "float64")
IMPLEMENTATIONS = [
    *(Implementation(f"eager-{n.name}", n.dtypes, partial(_by_kernel, n)) for n in NAMESPACES),
    Implementation("torch-function", TORCH_DTYPES, _by_torch_function),
    Implementation("torch-layer", TORCH_DTYPES, _by_torch_layer),
]
if "KERAS_BACKEND" in os.environ:  # a process for one backend of Keras: see test_keras.py
    import keras_contract

    IMPLEMENTATIONS = [
        Implementation(
            name,
            keras_contract.DTYPES,
            lambda case, training, fused=fused: Result(*keras_contract.run(case, training, fused)),
        )
        for name, fused in keras_contract.WAYS.items()
    ]
