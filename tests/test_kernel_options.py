"""What the options ask of a kernel and of the middle step, in every array namespace."""

import math

import array_api_compat.numpy
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchnorm import statistics
from batchnorm.activations import ACTIVATIONS
from batchnorm.layout import axes_of
from batchnorm.statistics import Moments, Observed, Running, Statistics
from kernel_calls import eager
from namespaces import KERNELS, NAMESPACES, Namespace, Served, to_numpy
from tolerance import DIFFERENCE_ROUNDINGS, DIFFERENCE_STEP, assert_close, assert_within_project_bound

everywhere = pytest.mark.parametrize("namespace", [*NAMESPACES, *KERNELS], ids=lambda n: n.name)
SHAPE = (6, 3, 4)  # (N, C, L)
PLAN = axes_of(3, 1)


def drawn(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@everywhere
@pytest.mark.parametrize("along", [(6, 1, 4), (6, 1, 1), (1, 1, 4)])
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_weighted_moments(namespace: Namespace, along: tuple[int, ...], mean: float) -> None:
    x = (mean + drawn(0)).astype(np.float32)
    w = np.abs(drawn(1, along)).astype(np.float32) * (drawn(2, along) > -0.5)
    got = namespace.kernel.moments(namespace.array(x, "float32"), PLAN, namespace.array(w, "float32"))
    full = np.broadcast_to(w, SHAPE).astype(np.float64)
    total = full.sum((0, 2), keepdims=True)
    mu = (full * x).sum((0, 2), keepdims=True) / total
    m2 = (full * (x - mu) ** 2).sum((0, 2), keepdims=True)
    assert_close(np.broadcast_to(to_numpy(got.count), total.shape), total, "float32", total)
    assert_close(to_numpy(got.mean) + to_numpy(got.mean_low), mu, "float32", 1.0)
    assert_close(to_numpy(got.m2), m2, "float32", m2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "values", ["normal", "far", "outlier first", "outlier last", "outliers at both ends", "sparse"]
)
@pytest.mark.parametrize("shape", [(65536, 2), (70001, 2), (300, 299, 2)])
def test_moments_of_many_values_that_are_added_one_after_another(
    shape: tuple[int, ...], values: str, weighted: bool
) -> None:
    x, xp = drawn(3, shape), array_api_compat.numpy  # it adds rows as they come
    if values == "outliers at both ends":  # so that the shift is one of them
        x += 20.0
        x[(0,) * (len(shape) - 1)] = x[(-1,) * (len(shape) - 1)] = 0.0
    elif values.startswith("outlier"):
        x[(0 if values.endswith("first") else -1,) * (len(shape) - 1)] = 1e4
    x = {"far": x + 1e6, "sparse": x * (drawn(5, shape) > 3.0)}.get(values, x).astype(np.float32)
    w = (drawn(4, (*shape[:-1], 1)) > -0.5).astype(np.float32) if weighted else None
    got = eager(xp).moments(x, axes_of(len(shape), -1), w)
    rows = x.reshape(-1, 2).astype(np.float64)
    kept = rows if w is None else rows[w.ravel() > 0.0]
    mean = got.mean.astype(np.float64) + got.mean_low
    assert_within_project_bound((mean.ravel() - kept.mean(0)) / kept.std(0), np.zeros(2))
    assert_within_project_bound(got.m2.ravel() / (len(kept) * kept.var(0)), np.ones(2))


@everywhere
def test_weighted_values_are_normalised_within_the_bound_at_a_million_deviations(namespace: Namespace) -> None:
    x, w = (1e6 + drawn(0, (500, 3))).astype(np.float32), (drawn(1, (500, 1)) > 0.0).astype(np.float32)
    layout, kernel, xp = axes_of(2, 1), namespace.kernel, namespace.xp
    array = namespace.array(x, "float32")
    using = statistics.of_batch(kernel.moments(array, layout, namespace.array(w, "float32")), 1e-5, xp)
    y = kernel.affine(array, using, using.inv_std, xp.zeros_like(using.inv_std))
    kept = x[w[:, 0] > 0].astype(np.float64)
    truth = (x.astype(np.float64) - kept.mean(0)) / np.sqrt(kept.var(0) + 1e-5)
    assert_within_project_bound(to_numpy(y), truth)


@everywhere
@pytest.mark.parametrize("bad", [math.inf, math.nan, 3e38])
def test_what_has_no_weight_reaches_no_moment(namespace: Namespace, bad: float) -> None:
    x, w = drawn(0).astype(np.float32), np.ones((6, 1, 4), np.float32)
    x[2, :, 1], w[2, :, 1] = bad, 0.0
    clean = np.where(w > 0, x, 0.0).astype(np.float32)
    weights, moments = namespace.array(w, "float32"), namespace.kernel.moments
    got, expected = (moments(namespace.array(v, "float32"), PLAN, weights) for v in (x, clean))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


@everywhere
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_shows_in_the_moments(namespace: Namespace, bad: float, weighted: bool) -> None:
    x = drawn(0)
    x[0, 0, 0] = x[:, 1, :] = bad  # one value of a feature, and all of another, so that the shift cannot avoid it
    w = namespace.array(np.ones((6, 1, 4)), "float64") if weighted else None
    with np.errstate(invalid="ignore"):
        got = namespace.kernel.moments(namespace.array(x, "float64"), PLAN, w)
        mean = to_numpy(got.mean) + to_numpy(got.mean_low)
    assert np.isfinite(to_numpy(got.m2)).ravel().tolist() == [False, False, True]
    assert np.isfinite(mean[0, 2, 0])
    if isinstance(namespace, Served):  # whose mean need not say which
        assert not np.isfinite(mean.ravel()[:2]).any()
    else:
        np.testing.assert_array_equal(mean.ravel()[:2], [bad, bad])


@everywhere
def test_no_weight_at_all_gives_zeros(namespace: Namespace) -> None:
    x, w = (namespace.array(a, "float64") for a in (drawn(0), np.zeros((6, 1, 1))))
    moments = namespace.kernel.moments(x, PLAN, w)
    assert all((to_numpy(a) == 0.0).all() for a in moments)
    observed = statistics.observed(moments, "unbiased", namespace.xp)
    assert (to_numpy(observed.var) == 0.0).all()


@everywhere
@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "gelu"])
@pytest.mark.parametrize("residual", [True, False])
def test_the_backward_computes_again_what_the_forward_activated(
    namespace: Namespace, activation: str, residual: bool
) -> None:
    kernel, xp = namespace.kernel, namespace.xp
    x, dy, skip = (namespace.array(drawn(i), "float64") for i in range(3))
    mean, low, scale, shift = (namespace.array(drawn(i, (1, 3, 1)), "float64") for i in range(3, 7))
    using, given = Statistics(mean, low, scale), skip if residual else None
    y = kernel.affine(x, using, scale, shift, residual=given, activation=activation)
    numbers = [to_numpy(a) for a in (x, mean, low, scale, shift, skip)]
    whole = (numbers[0] - numbers[1] - numbers[2]) * numbers[3] + numbers[4] + numbers[5] * residual
    z = namespace.array(whole, "float64")
    assert_close(to_numpy(y), to_numpy(ACTIVATIONS[activation].function(z, xp)), "float64", 8.0)
    dz = kernel.backward_activation(dy, x, using, scale, shift, activation=activation, residual=given)
    expected = to_numpy(ACTIVATIONS[activation].gradient(dy, z, xp))
    assert_close(to_numpy(dz), expected, "float64", 8.0)


@everywhere
def test_gradients_through_weighted_and_corrected_statistics(namespace: Namespace) -> None:
    """L = Σ dy·(γ·((x−μ)/σ·r + d) + β), differenced in x, γ and β, with r and d held."""
    kernel, xp, eps = namespace.kernel, namespace.xp, 0.1
    x, dy, w = drawn(0), drawn(1), np.abs(drawn(2, (6, 1, 4))) * (drawn(3, (6, 1, 4)) > -0.5)
    gamma, beta, r, d = (drawn(i, (1, 3, 1)) for i in range(4, 8))

    def loss(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> float:
        total = w.sum()
        mu = (w * x).sum((0, 2), keepdims=True) / total
        var = (w * (x - mu) ** 2).sum((0, 2), keepdims=True) / total
        return float((dy * (gamma * ((x - mu) / np.sqrt(var + eps) * r + d) + beta)).sum())

    def differenced(which: int) -> np.ndarray:
        arguments = [x, gamma, beta]
        slope = np.zeros_like(arguments[which])
        for at in np.ndindex(slope.shape):
            ends = []
            for sign in (1.0, -1.0):
                moved = [a.copy() for a in arguments]
                moved[which][at] += sign * DIFFERENCE_STEP
                ends.append(loss(*moved))
            slope[at] = (ends[0] - ends[1]) / (2.0 * DIFFERENCE_STEP)
        return slope

    a = {name: namespace.array(v, "float64") for name, v in {"x": x, "dy": dy, "w": w, "g": gamma, "b": beta}.items()}
    using = statistics.of_batch(kernel.moments(a["x"], PLAN, a["w"]), eps, xp)
    using = using._replace(r=namespace.array(r, "float64"), d=namespace.array(d, "float64"))
    scale, shift = statistics.forward_scale(using, a["g"]), statistics.forward_shift(using, a["g"], a["b"], xp)
    y = to_numpy(kernel.affine(a["x"], using, scale, shift))
    assert_close((dy * y).sum(), loss(x, gamma, beta), "float64", np.abs(dy * y).sum())
    sums = kernel.backward_reduce(a["dy"], a["x"], PLAN, using)
    coefficients = statistics.backward_coefficients(using, a["g"], *sums)
    got = (
        kernel.backward_elementwise(a["dy"], a["x"], using, coefficients, a["w"]),
        statistics.gamma_gradient(using, *sums),
        sums[0],
    )
    for which, gradient in enumerate(got):
        assert_close(to_numpy(gradient), differenced(which), "float64", 64.0, roundings=DIFFERENCE_ROUNDINGS)


@everywhere
def test_moments_that_are_not_heard_give_way_to_the_running_ones(namespace: Namespace) -> None:
    xp, (mean, m2, count) = (
        namespace.xp,
        (namespace.array(np.array(a), "float64") for a in ([1.0, 5.0], [8.0, 6.0], [2.0, 0.0])),
    )
    batch = statistics.of_batch(Moments(count, mean, m2, mean * 0.0), 0.0, xp)
    zero = mean * 0.0
    using = statistics.with_fallback(
        batch, count, statistics.of_running(zero + 7.0, zero + 4.0, 0.0, xp), max_fallback_count=0, xp=xp
    )
    np.testing.assert_array_equal(to_numpy(using.mean), [1.0, 7.0])
    np.testing.assert_array_equal(to_numpy(using.inv_std), [0.5, 0.5])
    np.testing.assert_array_equal(to_numpy(using.per_count), [0.5, 0.0])
    both = statistics.with_fallback(
        batch, count, statistics.of_running(zero, zero + 4.0, 0.0, xp), max_fallback_count=2, xp=xp
    )
    np.testing.assert_array_equal(to_numpy(both.per_count), [0.0, 0.0])


@everywhere
def test_what_is_observed_over_groups_is_the_mean_over_those_heard(namespace: Namespace) -> None:
    count = namespace.array(np.array([[4.0], [0.0], [2.0]]), "float64")
    mean = namespace.array(np.array([[1.0, 2.0], [9.0, 9.0], [3.0, 6.0]]), "float64")
    m2 = namespace.array(np.array([[12.0, 24.0], [0.0, 0.0], [2.0, 4.0]]), "float64")
    observed = statistics.observed(Moments(count, mean, m2, mean * 0.0), "unbiased", namespace.xp, 0)
    np.testing.assert_array_equal(to_numpy(observed.count), [[6.0]])
    np.testing.assert_array_equal(to_numpy(observed.mean), [[2.0, 4.0]])
    np.testing.assert_array_equal(to_numpy(observed.var), [[3.0, 6.0]])
    equal = statistics.observed(Moments(2, mean, m2, mean * 0.0), "biased", namespace.xp, 0)
    assert_close(to_numpy(equal.var), [[14.0 / 6.0, 28.0 / 6.0]], "float64", 8.0)


@everywhere
@example(mean=-9.0, var=4.0, clips=(0.5, 1.5, 0.5), running=(9.0, 1.0))
@example(mean=9.0, var=0.0, clips=(0.5, 1.5, 0.5), running=(-9.0, 3.0))
@given(
    mean=st.floats(-9.0, 9.0),
    var=st.floats(0.0, 9.0),
    clips=st.tuples(*(st.none() | st.floats(0.0, 4.0) for _ in range(3))),
    running=st.tuples(st.floats(-9.0, 9.0), st.floats(0.0, 3.0)),
)
def test_the_correction_is_the_papers(
    namespace: Namespace,
    mean: float,
    var: float,
    clips: tuple[float | None, ...],
    running: tuple[float, float],
) -> None:
    eps = 1e-3

    def enter(value: float) -> object:
        return namespace.array(np.full(1, value), "float64")

    r, d = statistics.correction(
        Observed(2, enter(mean), enter(var)), (enter(running[0]), enter(running[1])), clips, eps=eps, xp=namespace.xp
    )
    stddev = max(running[1], math.sqrt(eps))
    rmin, rmax, dmax = (
        default if c is None else c for c, default in zip(clips, (0.0, math.inf, math.inf), strict=True)
    )
    expected_r = min(max(math.sqrt(var + eps) / stddev, rmin), rmax)
    expected_d = min(max((mean - running[0]) / stddev, -dmax), dmax)
    assert_close(to_numpy(r), [expected_r], "float64", 1.0 + expected_r)
    assert_close(to_numpy(d), [expected_d], "float64", 1.0 + abs(expected_d))


@everywhere
def test_what_is_remembered_under_renormalization(namespace: Namespace) -> None:
    running = Running(*(namespace.array(np.full(1, v), "float64") for v in (0.0, 1.0, 1.0, 0.0, 1.0)))
    seen = Observed(2, *(namespace.array(np.full(1, v), "float64") for v in (8.0, 8.75)))
    after = statistics.remembered(running, seen, 0.5, namespace.xp, renorm=(0.25, 0.25))  # σ = √(8.75 + 0.25)
    assert [to_numpy(a).item() for a in after] == [4.0, 3.75, 2.0, 2.0, 1.5]
    tiny = statistics.remembered(running, seen._replace(var=seen.var * 0.0), 1.0, namespace.xp, renorm=(1.0, 1e-3))
    assert to_numpy(tiny.var).item() >= 0.0
