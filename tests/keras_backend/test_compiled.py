"""What is compiled is as exact as what is not, in several shapes of a ResNet-50, at means of 0 to a million σ.

A compiler chooses for each shape what to fuse, and in which order to add: one shape says nothing about another. All of
them are in the table of benchmarks/compiled_accuracy.py.
"""

from typing import Any

import numpy as np
import pytest
from differentiate import BACKEND, MODES, Array, moving, stepping

from batchnorm import reference
from batchnorm.keras import BatchNormalization
from tolerance import assert_close, assert_within_project_bound

EPSILON = 1e-3
SHAPES = [
    (8, 56, 56, 64),
    (8, 14, 14, 256),
    (32, 7, 7, 512),
    (16, 14, 14, 512),
    (64, 3),
]
FIRST = [(8, 256, 14, 14)]  # channels first
MEANS = (0.0, 1e2, 1e4, 1e6)  # in σ
COMPILED = MODES[1:]
pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="torch.compile is tested on the torch layer")


def normal(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def check(found: Any, after: dict[str, Array], x: Array, dy: Array, axis: int) -> None:
    f = reference.train(x, eps=EPSILON, axis=axis)
    right = reference.train_backward(dy, f)
    assert_within_project_bound(found.y, f.y)
    inv_std = 1.0 / np.sqrt(f.var + EPSILON)
    largest = np.abs(dy).max(axis=f.reduced, keepdims=True)
    assert_close(found.dx, right.x, "float32", largest * inv_std * (2.0 + np.abs(f.x_hat)))
    for mine, truth, terms in zip(
        found.gradients, (right.gamma, right.beta), (np.abs(dy) * (1.0 + np.abs(f.x_hat)), np.abs(dy)), strict=True
    ):
        assert_close(mine, truth.ravel(), "float32", terms.sum(axis=f.reduced, dtype=np.float64))
    assert_close(after["moving_mean"], f.mean.ravel(), "float32", np.abs(f.mean.ravel()) + 1.0)
    assert_close(after["moving_variance"], f.var.ravel(), "float32", f.var.ravel())


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize(("shape", "axis"), [*((s, -1) for s in SHAPES), *((s, 1) for s in FIRST)])
def test_outputs_gradients_and_statistics_of_every_shape(shape: tuple[int, ...], axis: int, mode: str) -> None:
    x, dy = normal(shape, 0), normal(shape, 1)
    layer = BatchNormalization(axis, momentum=0.0, epsilon=EPSILON)
    step = stepping(layer, mode, training=True)
    for mean in MEANS:
        far = x + np.float32(mean)
        check(step(far, dy), moving(layer), far, dy, axis)


@pytest.mark.parametrize("mode", COMPILED)
def test_a_mask_keeps_every_digit_too(mode: str) -> None:
    shape = (16, 49, 256)
    x, kept = normal(shape, 2) + np.float32(1e6), np.random.default_rng(3).random(shape[:2]) < 0.6
    layer = BatchNormalization(momentum=0.0, epsilon=EPSILON)
    found = stepping(layer, mode, training=True, mask=kept)(x, normal(shape, 4))
    rows = x[kept].astype(np.float64)
    y = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + EPSILON)
    assert_within_project_bound(found.y[kept], y)
    assert_close(moving(layer)["moving_variance"], rows.var(0), "float32", rows.var(0))


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize("place", [0, -1])
def test_an_outlier_does_not_become_the_shift(place: int, mode: str) -> None:
    x = normal((32, 14, 14, 64), 5)
    x[place, place, place] = 1e4
    layer = BatchNormalization(momentum=0.0, epsilon=EPSILON)
    stepping(layer, mode, training=True)(x, x)
    mean, var = x.astype(np.float64).mean((0, 1, 2)), x.astype(np.float64).var((0, 1, 2))
    assert_within_project_bound((moving(layer)["moving_mean"] - mean) / np.sqrt(var), np.zeros_like(mean))
    assert_within_project_bound(moving(layer)["moving_variance"] / var, np.ones_like(var))
