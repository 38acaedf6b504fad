"""The functions for NumPy's arrays against the reference, on the native kernel and without it."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from batchnorm import numpy as by_numpy
from batchnorm import reference
from batchnorm.errors import ArgumentError, DtypeError, ShapeError
from batchnorm.layout import axes_of
from choosing import with_backends
from tolerance import assert_close

SHAPES = [((16, 5, 7, 9), 1), ((33, 18), -1), ((6, 11, 20), -1), ((4, 3, 5, 2), (1, 3)), ((3, 40), 0)]


@pytest.fixture(params=["native", "eager"])
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernel that the functions find."""
    with with_backends(np) if request.param == "eager" else nullcontext():
        yield request.param


def arrays(shape: tuple[int, ...], axis: Any, dtype: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    kept = axes_of(len(shape), axis).kept_shape(shape)
    sizes = (shape, kept, kept, shape)
    return tuple(rng.normal(size=size).astype(dtype) + np.asarray(1, dtype) for size in sizes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_training_and_inference_equal_the_reference(kernel: str, shape: tuple[int, ...], axis: Any, dtype: str) -> None:
    x, gamma, beta, dy = arrays(shape, axis, dtype)
    f, truth = by_numpy.train(x, gamma, beta, axis=axis), reference.train(x, gamma, beta, axis=axis)
    assert f.plan.kernel.name == kernel
    assert f.y.dtype == x.dtype
    assert_close(f.y, truth.y, dtype, 1.0 + np.abs(truth.y))
    assert_close(f.var, truth.var, dtype, truth.var)
    gradients, expected = by_numpy.backward(dy, f), reference.train_backward(dy, truth)
    size = np.abs(dy).sum(axis=truth.reduced, keepdims=True) * (1.0 + np.abs(truth.x_hat).max())
    assert_close(gradients.x, expected.x, dtype, np.abs(gamma) * (2.0 + np.abs(truth.x_hat)) * np.abs(dy).max())
    assert_close(gradients.gamma, expected.gamma, dtype, size)
    assert_close(gradients.beta, expected.beta, dtype, size)
    mean, var = truth.mean + 0.5, truth.var * 2.0
    f, truth = (
        by_numpy.infer(x, mean, var, gamma, beta, axis=axis),
        reference.infer(x, mean, var, gamma, beta, axis=axis),
    )
    assert_close(f.y, truth.y, dtype, 1.0 + np.abs(truth.y) + np.abs(gamma))
    gradients, expected = by_numpy.backward(dy, f), reference.infer_backward(dy, truth)
    assert_close(gradients.x, expected.x, dtype, np.abs(expected.x))
    assert_close(gradients.gamma, expected.gamma, dtype, size)


def test_residual_and_activation_follow(kernel: str) -> None:
    x, gamma, beta, dy = arrays((8, 6, 10), 1, "float32")
    residual = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    f = by_numpy.train(x, gamma, beta, activation="relu", residual=residual)
    z = reference.train(x, gamma, beta).y + residual
    assert_close(f.y, np.maximum(z, 0.0), "float32", 1.0 + np.abs(z))
    gradients = by_numpy.backward(dy, f)
    np.testing.assert_array_equal(gradients.residual, dy * (f.y > 0.0))
    expected = reference.train_backward(dy * (f.y > 0.0), reference.train(x, gamma, beta))
    assert_close(gradients.x, expected.x, "float32", 8.0 + np.abs(expected.x))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"gamma": np.ones(3)}, r"`gamma` must hold a number for each of 4 features, got shape \(3,\)"),
        ({"beta": 2.0}, r"`beta` must hold a number for each of 4 features, got shape \(\)"),
        (
            {"residual": np.ones((1, 4, 5))},
            r"`residual` must have the shape and dtype of x",
        ),
        ({"residual": np.ones((6, 4, 5), np.float32)}, r"got \(6, 4, 5\) and float32"),
    ],
)
def test_arrays_that_do_not_fit_x_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        by_numpy.train(np.ones((6, 4, 5)), **given)
    with pytest.raises(ShapeError, match=says):
        by_numpy.infer(np.ones((6, 4, 5)), np.zeros(4), np.ones(4), **given)


def test_lists_will_do_and_a_negative_variance_will_not() -> None:
    x = [[1.0, 2.0], [3.0, 5.0]]
    assert by_numpy.train(x, residual=x).y.tolist() == by_numpy.train(np.array(x), residual=np.array(x)).y.tolist()
    with pytest.raises(ShapeError, match="`mean` must hold a number for each of 2 features"):
        by_numpy.infer(x, [1.0], [1.0, 1.0])
    with pytest.raises(ArgumentError, match=r"`var` must not be negative, got -1\.0"):
        by_numpy.infer(x, [0.0, 0.0], [1.0, -1.0])


def test_what_does_not_fit_is_named() -> None:
    x = np.ones((4, 3), np.float32)
    with pytest.raises(DtypeError, match="int64"):
        by_numpy.train(np.ones((4, 3), np.int64))
    with pytest.raises(ShapeError, match=r"\(4,\)"):
        by_numpy.train(np.ones(4))
    with pytest.raises(ArgumentError, match="swish"):
        by_numpy.train(x, activation="swish")
    with pytest.raises(ShapeError, match=r"\(4, 3\).*\(3, 4\)"):
        by_numpy.backward(np.ones((3, 4)), by_numpy.train(x))
