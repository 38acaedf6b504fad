"""What every implementation must do, in every regime: training and inference, outputs, gradients and statistics."""

from itertools import combinations, product

import numpy as np
import pytest

import regimes
from batchnorm import reference
from implementations import IMPLEMENTATIONS, Implementation, Result
from regimes import CASES, INFERENCE_CASES, LAYOUTS, VALUES, Case
from tolerance import assert_close, assert_within_project_bound, conditioning, working


def _served(cases: list[Case]) -> list[object]:
    return [
        pytest.param(i, case, id=f"{i.name}-{case}")
        for i, case in product(IMPLEMENTATIONS, cases)
        if case.dtype in i.dtypes and (i.empty or regimes.data(case).x.size)
    ]


def _total(terms: np.ndarray, f: reference.Forward, like: np.ndarray) -> np.ndarray:
    return terms.sum(axis=f.reduced).reshape(like.shape)


def _check_passes(result: Result, case: Case, f: reference.Forward, truth: reference.Gradients) -> None:
    """Compare output and gradients, each with the size of the terms it is made of."""
    d, inv_std = regimes.data(case), 1.0 / np.sqrt(f.var + f.eps)
    oracle = conditioning(f.mean, 1.0 / inv_std) if case.dtype == "float64" else 1.0  # float64 centres only once
    y_size = np.abs(f.gamma) * (1.0 + np.abs(f.x_hat)) + np.abs(f.y)
    assert_close(result.y, f.y, case.dtype, y_size * oracle)
    largest_dy = np.abs(d.dy.astype(np.float64)).max(axis=f.reduced, keepdims=True, initial=0.0)
    dx_size = np.abs(f.gamma) * inv_std * largest_dy * (2.0 + np.abs(f.x_hat))
    assert_close(result.dx, truth.x, case.dtype, dx_size * oracle)
    if d.gamma is not None:
        size = _total(np.abs(d.dy) * (1.0 + np.abs(f.x_hat)) * oracle, f, d.gamma)
        assert_close(result.dgamma, truth.gamma.reshape(d.gamma.shape), case.dtype, size)
    if d.beta is not None:
        size = _total(np.abs(d.dy.astype(np.float64)), f, d.beta)
        assert_close(result.dbeta, truth.beta.reshape(d.beta.shape), case.dtype, size)


@pytest.mark.parametrize(("implementation", "case"), _served(CASES))
def test_training(implementation: Implementation, case: Case) -> None:
    f, d = regimes.forward(case, training=True), regimes.data(case)
    result = implementation.run(case, True)
    _check_passes(result, case, f, reference.train_backward(d.dy, f))
    mean, var = f.mean.reshape(d.running_mean.shape), f.var.reshape(d.running_var.shape)
    observed = reference.unbiased(var, f.count) if case.estimator == "unbiased" else var
    expected_mean = reference.remember(d.running_mean, mean, case.momentum)
    expected_var = reference.remember(d.running_var, observed, case.momentum)
    precise = working(case.dtype)
    assert_close(result.running_mean, expected_mean, precise, np.abs(d.running_mean) + np.abs(mean) + np.sqrt(var))
    assert_close(result.running_var, expected_var, precise, d.running_var + observed)


@pytest.mark.parametrize(("implementation", "case"), _served([*CASES, *INFERENCE_CASES]))
def test_inference(implementation: Implementation, case: Case) -> None:
    f, d = regimes.forward(case, training=False), regimes.data(case)
    result = implementation.run(case, False)
    _check_passes(result, case, f, reference.infer_backward(d.dy, f))
    np.testing.assert_array_equal(result.running_mean, d.running_mean)
    np.testing.assert_array_equal(result.running_var, d.running_var)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.name)
def test_training_is_within_1e_5_of_float64_in_every_regime(implementation: Implementation, layout: str) -> None:
    for values in VALUES:
        case = Case(layout, values, "float32")
        assert_within_project_bound(implementation.run(case, True).y, regimes.forward(case, training=True).y)


def test_every_two_regimes_meet_in_some_case() -> None:
    factors = {"layout": list(LAYOUTS), "values": VALUES, "dtype": regimes.DTYPES, **regimes.OPTIONS}
    met = {pair for case in CASES for pair in combinations(vars(case).items(), 2)}
    wanted = {((a, u), (b, v)) for a, b in combinations(factors, 2) for u, v in product(factors[a], factors[b])}
    assert wanted - met == {(("values", "mean-1e6"), ("dtype", "float16"))}
    assert all(regimes.possible(vars(case)) for case in CASES)
