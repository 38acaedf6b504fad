"""The reference itself, against exact fractions, the complex step and central differences: no formula of its own."""

from fractions import Fraction
from itertools import product
from math import isqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from batchnorm import reference
from regimes import LAYOUTS
from tolerance import DIFFERENCE_ROUNDINGS, DIFFERENCE_STEP, assert_close

# (values of one feature, ε) for which σ² + ε is a perfect square
EXACT = [
    ([1, 3], Fraction(5, 4)),
    ([0, 0, 0, 4], Fraction(1)),
    ([1, 2, 3, 4, 5], Fraction(1, 4)),
    ([-7, 5], Fraction(13)),
    ([2, 2, 2], Fraction(9, 16)),
    ([0, 0, 0, 0, 0, 6], Fraction(4)),
]
GAMMA, BETA = Fraction(3), Fraction(-2)


def root(square: Fraction) -> Fraction:
    result = Fraction(isqrt(square.numerator), isqrt(square.denominator))
    assert result * result == square
    return result


def moments(values: list[int]) -> tuple[Fraction, Fraction]:
    mean = Fraction(sum(values), len(values))
    return mean, sum(((v - mean) ** 2 for v in values), Fraction(0)) / len(values)


def jacobian(values: list[int], eps: Fraction) -> list[list[Fraction]]:
    """Return ∂y_j/∂x_i of y = γ(x−μ)/s + β by the quotient rule, with ∂s/∂x_i = (x_i−μ)/(N·s)."""
    (mean, var), n = moments(values), len(values)
    s = root(var + eps)
    return [
        [GAMMA * (((i == j) - Fraction(1, n)) / s - (a - mean) * (b - mean) / (n * s**3)) for j, b in enumerate(values)]
        for i, a in enumerate(values)
    ]


def column(values: list[int] | list[Fraction]) -> NDArray[np.float64]:
    return np.array([[float(v)] for v in values])


@pytest.mark.parametrize(("values", "eps"), EXACT)
def test_training_equals_exact_fractions(values: list[int], eps: Fraction) -> None:
    mean, var = moments(values)
    y = [GAMMA * (v - mean) / root(var + eps) + BETA for v in values]
    forward = reference.train(column(values), [float(GAMMA)], [float(BETA)], eps=float(eps))
    assert_close(forward.y, column(y), "float64", 4.0)
    assert_close(forward.mean, [[float(mean)]], "float64")
    assert_close(forward.var, [[float(var)]], "float64", 9.0)
    assert forward.count == len(values)


@pytest.mark.parametrize(("values", "eps"), EXACT)
def test_training_gradients_equal_exact_fractions(values: list[int], eps: Fraction) -> None:
    dy = [(-1) ** i * (i + 2) for i in range(len(values))]
    dx = [sum((j * d for j, d in zip(row, dy, strict=True)), Fraction(0)) for row in jacobian(values, eps)]
    mean, var = moments(values)
    x_hat = [(v - mean) / root(var + eps) for v in values]
    forward = reference.train(column(values), [float(GAMMA)], [float(BETA)], eps=float(eps))
    gradients = reference.train_backward(column(dy), forward)
    assert_close(gradients.x, column(dx), "float64", 9.0)
    exact = sum((h * d for h, d in zip(x_hat, dy, strict=True)), Fraction(0))
    assert_close(gradients.gamma, [[float(exact)]], "float64", 9.0)
    assert gradients.beta.item() == sum(dy)


def test_inference_equals_exact_fractions() -> None:
    x, dy = column([5, -3, 0]), column([1, 2, -4])
    forward = reference.infer(x, [1.0], [3.0], [2.0], [7.0], eps=1.0)  # y = 2·(x−1)/2 + 7
    gradients = reference.infer_backward(dy, forward)
    np.testing.assert_array_equal(forward.y, x + 6.0)
    np.testing.assert_array_equal(gradients.x, dy)
    np.testing.assert_array_equal(gradients.gamma, [[1 * 2.0 + 2 * -2.0 + -4 * -0.5]])
    np.testing.assert_array_equal(gradients.beta, [[-1.0]])


@pytest.mark.parametrize(
    ("axis", "mean"),
    [
        (0, [[[2.5]], [[10.5]]]),
        (1, [[[4.5], [6.5], [8.5]]]),
        (-1, [[[6.0, 7.0]]]),
        ((0, 2), [[[2.0, 3.0]], [[10.0, 11.0]]]),
        ((-1, 0), [[[2.0, 3.0]], [[10.0, 11.0]]]),
    ],
)
def test_axis_names_what_is_kept(axis: int | tuple[int, ...], mean: list[object]) -> None:
    x = np.array([[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [[8.0, 9.0], [10.0, 11.0], [12.0, 13.0]]])
    np.testing.assert_array_equal(reference.train(x, axis=axis).mean, np.array(mean), strict=True)


@pytest.mark.parametrize("axis", [2, -3, (0, 2), (1, -1)])
def test_an_axis_that_is_not_there_or_there_twice_is_refused(axis: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="axis"):
        reference.train(np.ones((4, 3)), axis=axis)


def _by_hand(x: NDArray[np.complex128], reduced: tuple[int, ...], eps: float) -> NDArray[np.complex128]:
    centred = x - x.mean(axis=reduced, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=reduced, keepdims=True) + eps)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_gradient_equals_the_complex_step(layout: str) -> None:
    shape, axis = LAYOUTS[layout]
    rng = np.random.default_rng(3)
    x, dy, eps = rng.standard_normal(shape), rng.standard_normal(shape), 0.1
    forward = reference.train(x, eps=eps, axis=axis)
    kept = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}
    reduced = tuple(i for i in range(len(shape)) if i not in kept)
    step, slope = 2.0**-200, np.empty(shape)
    for at in list(product(*map(range, shape)))[:40]:
        moved = x.astype(np.complex128)
        moved[at] += 1j * step
        slope[at] = (dy * _by_hand(moved, reduced, eps).imag).sum() / step
    dx = reference.train_backward(dy, forward).x
    assert_close(forward.y, _by_hand(x.astype(np.complex128), reduced, eps).real, "float64", 4.0)
    assert_close(dx.ravel()[:40], slope.ravel()[:40], "float64", 9.0)


@pytest.mark.parametrize("name", ["x", "gamma", "beta"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_equal_central_differences(training: bool, name: str) -> None:
    rng = np.random.default_rng(5)
    at = {"x": rng.standard_normal((4, 3, 2)), "gamma": rng.uniform(0.5, 2.0, 3), "beta": rng.standard_normal(3)}
    dy, mean, var = rng.standard_normal((4, 3, 2)), rng.standard_normal(3), rng.uniform(0.5, 2.0, 3)

    def forward(**arrays: NDArray[np.float64]) -> reference.Forward:
        x, gamma, beta = arrays["x"], arrays["gamma"], arrays["beta"]
        return reference.train(x, gamma, beta) if training else reference.infer(x, mean, var, gamma, beta)

    def loss(array: NDArray[np.float64]) -> float:
        return float((dy * forward(**{**at, name: array}).y).sum())

    slope = np.empty(at[name].shape)
    for i in np.ndindex(slope.shape):
        step = np.zeros(slope.shape)
        step[i] = DIFFERENCE_STEP
        slope[i] = (loss(at[name] + step) - loss(at[name] - step)) / (2.0 * DIFFERENCE_STEP)
    backward = reference.train_backward if training else reference.infer_backward
    gradient = getattr(backward(dy, forward(**at)), name)
    assert_close(gradient.reshape(slope.shape), slope, "float64", roundings=DIFFERENCE_ROUNDINGS)


def test_remember_moves_by_momentum_towards_the_new() -> None:
    np.testing.assert_array_equal(reference.remember([8.0, 0.0], [16.0, 4.0], 0.25), [10.0, 1.0])
    assert reference.remember(8.0, 16.0, 0.0).item() == 8.0
    assert reference.remember(8.0, 16.0, 1.0).item() == 16.0


@pytest.mark.parametrize(("count", "expected"), [(2, 12.0), (4, 8.0), (7, 7.0), (1, 6.0), (0, 6.0)])
def test_unbiased_divides_by_one_less_where_it_can(count: int, expected: float) -> None:
    assert reference.unbiased(6.0, count).item() == expected
