"""The middle step, in every array namespace: merging, running updates, and what the two passes need."""

from functools import partial, reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from batchnorm import reference, statistics
from batchnorm.statistics import Moments
from namespaces import NAMESPACES, Namespace, read_only, to_numpy
from tolerance import assert_close

everywhere = pytest.mark.parametrize("namespace", NAMESPACES, ids=lambda n: n.name)
FEATURES = 3
MEANS = (0.0, 1e2, 1e4, 1e6)


def told(namespace: Namespace, x: NDArray[np.float64]) -> Moments:
    """Return the moments of float32 values as a kernel tells them: the mean in two float32."""
    if len(x) == 0:
        return Moments(0, *(namespace.array(np.zeros(FEATURES, np.float32), "float32") for _ in range(3)))
    mean = x.mean(axis=0)
    high = mean.astype(np.float32)
    arrays = (high, np.square(x - mean).sum(axis=0).astype(np.float32), (mean - high).astype(np.float32))
    return Moments(len(x), *(namespace.array(a, "float32") for a in arrays))


def whole(moments: Moments) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return to_numpy(moments.mean) + to_numpy(moments.mean_low), to_numpy(moments.m2)


def values(size: int, mean: float, seed: int) -> NDArray[np.float64]:
    drawn = mean + np.random.default_rng(seed).standard_normal((size, FEATURES))
    return drawn.astype(np.float32).astype(np.float64)


def assert_moments_of(merged: Moments, x: NDArray[np.float64]) -> None:
    """Mean and m2 are right to roundings of the spread of the data, however large the mean."""
    mean, m2 = whole(merged)
    spread = np.abs(x - x.mean(axis=0))
    assert merged.count == len(x)
    assert_close(mean, x.mean(axis=0), "float32", spread.max(axis=0))
    assert_close(m2, np.square(spread).sum(axis=0), "float32", np.square(spread).sum(axis=0))


@everywhere
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum),
    mean=st.sampled_from(MEANS),
    seed=st.integers(0, 2**16),
)
def test_any_split_merges_to_the_moments_of_the_whole(
    namespace: Namespace, sizes: list[int], mean: float, seed: int
) -> None:
    x = values(sum(sizes), mean, seed)
    parts = [told(namespace, part) for part in np.split(x, np.cumsum(sizes)[:-1])]
    assert_moments_of(reduce(partial(statistics.merge, xp=namespace.xp), parts), x)


@everywhere
@pytest.mark.parametrize("mean", MEANS)
def test_merging_pairwise_equals_merging_in_a_row(namespace: Namespace, mean: float) -> None:
    x = values(1 + 2 + 60 + 5, mean, seed=1)
    a, b, c, d = (told(namespace, part) for part in np.split(x, [1, 3, 63]))
    merge = partial(statistics.merge, xp=namespace.xp)
    assert_moments_of(merge(merge(a, b), merge(c, d)), x)
    assert_moments_of(merge(merge(merge(d, c), b), a), x)


@everywhere
@pytest.mark.parametrize("empty_first", [True, False])
def test_merging_an_empty_batch_changes_no_bit(namespace: Namespace, empty_first: bool) -> None:
    full, empty = told(namespace, values(7, 1e6, seed=2)), told(namespace, values(0, 0.0, seed=0))
    merged = statistics.merge(*((empty, full) if empty_first else (full, empty)), namespace.xp)
    for got, expected in zip(merged, full, strict=True):
        np.testing.assert_array_equal(to_numpy(got), to_numpy(expected))


@everywhere
def test_merging_weighs_by_the_count(namespace: Namespace) -> None:
    def constant(count: int, mean: float) -> Moments:
        arrays = (np.full(1, v, np.float32) for v in (mean, 0.0, 0.0))
        return Moments(count, *(namespace.array(a, "float32") for a in arrays))

    merged = statistics.merge(constant(3, 0.0), constant(1, 8.0), namespace.xp)  # 0 0 0 8
    assert merged.count == 4
    assert whole(merged) == (2.0, 48.0)


def test_merge_takes_counts_that_differ_by_feature() -> None:
    zero = np.zeros(2)
    merged = statistics.merge(
        Moments(np.array([1.0, 3.0]), np.array([0.0, 4.0]), zero, zero),
        Moments(np.array([1.0, 1.0]), np.array([2.0, 8.0]), zero, zero),
        np,
    )
    np.testing.assert_array_equal(merged.count, [2.0, 4.0])
    np.testing.assert_array_equal(merged.mean, [1.0, 5.0])
    np.testing.assert_array_equal(merged.m2, [2.0, 12.0])


@everywhere
@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize(
    ("momentum", "before", "observation", "expected"),
    [
        (0.0, 8.0, 16.0, 8.0),
        (0.25, 8.0, 16.0, 10.0),
        (0.75, 8.0, 16.0, 14.0),
        (1.0, 8.0, 16.0, 16.0),
        (1.0, 5000.0, 1e-4, 1e-4),  # s + 1·(o − s) is 0 in float32
        (1.0, 1e8, -3e-5, -3e-5),
        (0.0, 1e-4, 1e8, 1e-4),
        (0.75, 1e8, 0.0, 2.5e7),
    ],
)
def test_updated_weighs_the_new_observation(
    namespace: Namespace, momentum: float, before: float, observation: float, expected: float, as_array: bool
) -> None:
    running, observed = (namespace.array(np.full(FEATURES, v, np.float32), "float32") for v in (before, observation))
    alpha = namespace.array(np.asarray(momentum, np.float32), "float32") if as_array else momentum
    after = statistics.updated(running, observed, alpha, namespace.xp)
    np.testing.assert_array_equal(to_numpy(after), np.full(FEATURES, expected, np.float32))
    np.testing.assert_array_equal(to_numpy(running), np.full(FEATURES, before, np.float32))


@everywhere
@pytest.mark.parametrize(
    ("count", "estimator", "expected"),
    [(4, "unbiased", 4.0), (4, "biased", 3.0), (2, "unbiased", 12.0), (1, "unbiased", 12.0), (1, "biased", 12.0)],
)
def test_observed_variance(namespace: Namespace, count: int, estimator: str, expected: float) -> None:
    zero, m2 = (namespace.array(np.full(1, v, np.float32), "float32") for v in (0.0, 12.0))
    observed = statistics.observed_variance(Moments(count, zero, m2, zero), estimator, namespace.xp)
    assert to_numpy(observed) == [expected]


@everywhere
def test_statistics_put_epsilon_inside_the_root(namespace: Namespace) -> None:
    mean, m2, low = (namespace.array(np.full(1, v, np.float32), "float32") for v in (5.0, 6.0, 0.5))
    by_batch = statistics.of_batch(Moments(2, mean, m2, low), 1.0, namespace.xp)
    assert [to_numpy(a).item() for a in by_batch] == [5.0, 0.5, 0.5, 0.5, 1.0, 0.0]
    by_running = statistics.of_running(mean, m2, 3.0, namespace.xp)
    assert to_numpy(by_running.mean) == [5.0]
    assert to_numpy(by_running.inv_std) == pytest.approx(1.0 / 3.0)
    assert by_running.mean_low == 0.0


@everywhere
@given(
    size=st.integers(2, 30),
    gamma=st.sampled_from([None, -4.0, -0.5, 0.0, 0.5, 3.0]),
    eps=st.sampled_from([1e-5, 1e-3, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_backward_coefficients_give_the_gradients_of_the_reference(
    namespace: Namespace, size: int, gamma: float | None, eps: float, seed: int
) -> None:
    x, dy = np.random.default_rng(seed).standard_normal((2, size, FEATURES))
    scale = None if gamma is None else np.full(FEATURES, gamma)
    f = reference.train(x, scale, eps=eps)
    truth = reference.train_backward(dy, f)
    mean, var, dy_sum, dy_centred = (
        namespace.array(a.reshape(FEATURES), "float64")
        for a in (f.mean, f.var, dy.sum(axis=0), (dy * (x - f.mean)).sum(axis=0))
    )
    using = statistics.of_batch(Moments(size, mean, var * size, 0.0), eps, namespace.xp)
    learned = None if scale is None else namespace.array(scale, "float64")
    of_dy, of_centred, constant = map(to_numpy, statistics.backward_coefficients(using, learned, dy_sum, dy_centred))
    dx = dy * of_dy + (x - f.mean) * of_centred + constant
    terms = np.abs(dy * of_dy) + np.abs((x - f.mean) * of_centred) + np.abs(constant)
    assert_close(dx, truth.x, "float64", terms.max() + np.abs(of_dy).max())
    dgamma = to_numpy(statistics.gamma_gradient(using, dy_sum, dy_centred))
    assert_close(dgamma, truth.gamma.ravel(), "float64", np.abs(dy * f.x_hat).sum(axis=0))


def test_the_read_only_namespace_catches_a_write() -> None:
    array = read_only(np.ones(2))
    with pytest.raises(ValueError, match="read-only"):
        np.add(array, 1.0, out=array)
    result = array * 2.0
    with pytest.raises(TypeError, match="in place"):
        result += 1.0
