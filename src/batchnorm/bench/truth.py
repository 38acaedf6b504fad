"""What a contender must compute, in float64: nothing wrong is timed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm import reference
from batchnorm.bench.arrays import Arrays
from batchnorm.bench.cases import Case

EPS = 1e-5
CHECKED = 2**20  # values, about: features do not mix, so that a few of them tell
# Error ÷ largest value: float32 has room for the sums of torch's own kernels, 16 bits for four roundings.
ALLOWED = {"float32": 1000 * 2.0**-23, "bfloat16": 4 * 2.0**-7, "float16": 4 * 2.0**-10}
Outputs = dict[str, NDArray[Any]]


def checked_features(case: Case) -> NDArray[np.intp]:
    """Return which features are checked: at least four if there are, from the first to the last."""
    values = int(np.prod(case.shape)) // case.features
    many = min(case.features, max(4, min(64, CHECKED // values)))
    return np.unique(np.linspace(0, case.features - 1, many).astype(np.intp))


def expected(case: Case, given: Arrays) -> tuple[Outputs, Outputs]:
    """Return the right outputs for the checked features, and how far off each may be whatever the rounding.

    Returns:
        y; where there is a backward dx, dgamma, dbeta and, where there is one, dresidual too. With ReLU, gradients have
        room for the elements whose pre-activation is as near to zero as rounding may move it: their slope is in doubt.
    """
    op, at, axis = case.operation, checked_features(case), case.axis_in_memory
    x, dy, residual = (values.take(at, axis).astype(np.float64) for values in (given.x, given.dy, given.residual))
    gamma, beta = given.gamma[at], given.beta[at]
    if op.training:
        done = reference.train(x, gamma, beta, eps=EPS, axis=axis)
    else:
        done = reference.infer(x, given.mean[at], given.var[at], gamma, beta, eps=EPS, axis=axis)
    z = done.y + residual if op.add else done.y
    right: Outputs = {"y": np.maximum(z, 0.0) if op.relu else z}
    if not op.backward:
        return right, {}
    right |= _gradients(dy * (z > 0) if op.relu else dy, done, add=op.add)
    if not op.relu:
        return right, {}
    doubt = np.abs(z) <= ALLOWED[case.dtype] * np.abs(z).max()
    return right, _room(np.abs(dy) * doubt, done)


def _gradients(dz: Any, done: reference.Forward, *, add: bool) -> Outputs:
    gradients = reference.train_backward(dz, done)
    found: Outputs = {"dx": gradients.x, "dgamma": gradients.gamma.ravel(), "dbeta": gradients.beta.ravel()}
    return found | ({"dresidual": dz} if add else {})


def _room(doubtful: Any, done: reference.Forward) -> Outputs:
    """Return the most by which gradients can be off where elements of dz, of this size at most, are there or not."""
    x_hat = np.abs(done.x_hat)
    beta = doubtful.sum(axis=done.reduced, keepdims=True)
    gamma = (doubtful * x_hat).sum(axis=done.reduced, keepdims=True)
    each = doubtful + (beta + x_hat * gamma) / done.count
    dx = np.abs(done.gamma) / np.sqrt(done.var + done.eps) * each
    return {"dx": dx, "dgamma": gamma.ravel(), "dbeta": beta.ravel(), "dresidual": doubtful}


def error(outputs: Outputs, right: Outputs, room: Outputs) -> float:
    """Return the largest error of any output beyond its room, over the largest value of that output."""
    worst = 0.0
    for name, truth in right.items():
        off = np.abs(np.asarray(outputs[name], np.float64) - truth) - room.get(name, 0.0)
        largest = float(off.max(initial=0.0)) / max(float(np.abs(truth).max()), 1e-300)
        worst = max(worst, largest) if np.isfinite(largest) else float("inf")
    return worst
