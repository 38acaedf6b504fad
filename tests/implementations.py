"""Every implementation of the layer there is, behind one signature: what the contract suite runs over.

To add one, write a function `(case, training) -> Result` and give it a line in `IMPLEMENTATIONS`.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from batchnorm import kernels, statistics
from batchnorm.kernels.native.memory import memory_layout
from batchnorm.layout import axes_of
from batchnorm.torch import BatchNorm, batch_norm
from choosing import without_fast_step, without_native
from kernel_calls import Wanted
from namespaces import KERNELS, NAMESPACES, TORCH_DTYPES, Namespace, Served, to_numpy, to_torch
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
    empty: bool = True  # whether it serves an input with nothing in it


def lies_apart(case: Case) -> bool:
    """Return whether the native kernel does not serve how a case lies in memory, nor should it."""
    x = data(case).x
    strides, features = tuple(s // x.itemsize for s in x.strides), axes_of(x.ndim, case.axis).kept_shape(x.shape)
    return isinstance(memory_layout(x.shape, strides, features), str)


def dense(case: Case) -> Array:
    """Return x of a case, moved where the native kernel does not serve how it lies."""
    return np.ascontiguousarray(data(case).x) if lies_apart(case) else data(case).x


def _at_once(namespace: Served, case: Case, training: bool) -> Result:
    """Ask a kernel for a forward and a backward in one call each."""
    d, xp, kernel = data(case), namespace.xp, namespace.kernel
    x, dy = (namespace.array(a, case.dtype) for a in (dense(case), d.dy))
    layout = axes_of(d.x.ndim, case.axis)
    kept, features = layout.kept_shape(d.x.shape), d.running_mean.shape

    def enter(array: Array | None) -> Any:
        precise = working(case.dtype)
        return None if array is None else namespace.array(array.reshape(kept).astype(precise), precise)

    running, gamma, beta = (enter(d.running_mean), enter(d.running_var)), enter(d.gamma), enter(d.beta)
    if training:
        y, moments, inv_std, reserve = kernel.forward(x, layout, gamma, beta, eps=EPSILON)
        assert (reserve is not None) == kernel.kernel.has_reserve(None, residual=False)
        using = statistics.Statistics(moments.mean, moments.mean_low, inv_std, 1.0 / moments.count)
        using = using._replace(per_count=xp.full_like(inv_std, using.per_count))
        observed = statistics.observed(moments, case.estimator, xp)
        running = statistics.remembered(statistics.Running(*running), observed, case.momentum, xp)[:2]
    else:
        using = statistics.of_running(*running, EPSILON, xp)
    scale, shift = statistics.forward_scale(using, gamma), statistics.forward_shift(using, gamma, beta, xp)
    if not training:
        y = kernel.affine(x, using, scale, shift)
    wants = Wanted(dx=True, dz=False, sums=True)
    kept_back = {"reserve": reserve} if training else {}
    _, first, second, dx = kernel.backward(dy, x, using, scale, shift, wants=wants, **kept_back)
    dgamma, dbeta = statistics.gamma_gradient(using, first, second), first
    of_features = (to_numpy(a).reshape(features) for a in (dgamma, dbeta, *running))
    dgamma, dbeta, mean, var = of_features
    return Result(
        to_numpy(y), to_numpy(dx), None if gamma is None else dgamma, None if beta is None else dbeta, mean, var
    )


def _by_kernel(namespace: Namespace, case: Case, training: bool) -> Result:
    """Put a kernel and the statistics together by hand."""
    d, xp, kernel = data(case), namespace.xp, namespace.kernel
    layout = axes_of(d.x.ndim, case.axis)
    kept = layout.kept_shape(d.x.shape)

    def enter(array: Array) -> Any:
        return namespace.array(array.reshape(kept).astype(working(case.dtype)), working(case.dtype))

    moved = dense(case) if isinstance(namespace, Served) else d.x
    x, dy = (namespace.array(a, case.dtype) for a in (moved, d.dy))
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


def _within(context: Callable[[], AbstractContextManager[None]], run: Any, case: Case, training: bool) -> Result:
    with context():
        return run(case, training)


IMPLEMENTATIONS = [
    *(Implementation(f"eager-{n.name}", n.dtypes, partial(_by_kernel, n)) for n in NAMESPACES),
    Implementation("torch-function", TORCH_DTYPES, _by_torch_function),
    Implementation("torch-layer", TORCH_DTYPES, _by_torch_layer),
    Implementation("torch-layer-general", TORCH_DTYPES, partial(_within, without_fast_step, _by_torch_layer)),
    Implementation("torch-layer-eager", TORCH_DTYPES, partial(_within, without_native, _by_torch_layer)),
    Implementation("torch-function-eager", TORCH_DTYPES, partial(_within, without_native, _by_torch_function)),
]


IMPLEMENTATIONS += [
    Implementation(f"{n.name}{way}", n.dtypes, partial(run, n), empty=False)
    for n in KERNELS
    for way, run in (("", _by_kernel), ("-at-once", _at_once))
    if not way or kernels.one_call(n.served)
]
if "KERAS_BACKEND" in os.environ:  # a process for one backend of Keras: see test_keras.py
    import keras_contract

    IMPLEMENTATIONS = [
        Implementation(
            name,
            way.dtypes,
            lambda case, training, way=way: Result(*keras_contract.run(case, training, way)),
        )
        for name, way in keras_contract.WAYS.items()
    ]
