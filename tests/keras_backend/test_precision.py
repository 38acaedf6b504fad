"""Where the mean is many standard deviations this layer keeps every digit, compiled or not; Keras' own does not."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from differentiate import BACKEND, MODES, Array, called, moving, numpy

from batchnorm.keras import BatchNormalization
from tolerance import PROJECT_BOUND, assert_close, assert_within_project_bound, largest_error

EPSILON = 1e-3
LAYOUTS: list[tuple[tuple[int, ...], Any]] = [
    ((64, 8), -1),
    ((16, 6, 5, 8), -1),
    ((16, 8, 6, 5), 1),
    ((8, 4, 6, 3), (1, 3)),
]


def offset(shape: tuple[int, ...], mean: float) -> Array:
    return (mean + np.random.default_rng(11).normal(size=shape)).astype(np.float32)


def exact(x: Array, axis: Any) -> Array:
    kept = {a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,))}
    axes = tuple(i for i in range(x.ndim) if i not in kept)
    precise = x.astype(np.float64)
    found: Array = (precise - precise.mean(axes, keepdims=True)) / np.sqrt(precise.var(axes, keepdims=True) + EPSILON)
    return found


def compiled(layer: Any) -> Callable[[Array], Any]:
    """Return training mode as the backend compiles it: XLA on TensorFlow and JAX; torch runs as it is."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x: layer(x, training=True), jit_compile=True)
    if BACKEND == "jax":
        import jax

        state = [v.value for v in layer.non_trainable_variables]
        trained = [v.value for v in layer.trainable_variables]
        return jax.jit(lambda x: layer.stateless_call(trained, state, x, training=True)[0])
    return lambda x: layer(x, training=True)


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("fused", [None, False] if BACKEND == "torch" else [None])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_every_digit_is_kept(shape: tuple[int, ...], axis: Any, fused: bool | None, mean: float) -> None:
    x = offset(shape, mean)
    layer = BatchNormalization(axis, fused=fused)
    assert_within_project_bound(numpy(layer(x, training=True)), exact(x, axis))
    assert_within_project_bound(numpy(compiled(layer)(x)), exact(x, axis))


@pytest.mark.parametrize(("shape", "axis"), [((65536, 3), -1), ((32, 56, 56, 3), -1), ((32, 3, 56, 56), 1)])
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_sums_of_many_values_keep_them_too(shape: tuple[int, ...], axis: int, mean: float) -> None:
    x = offset(shape, mean)
    layer = BatchNormalization(axis, fused=False)
    assert_within_project_bound(numpy(layer(x, training=True)), exact(x, axis))
    assert_within_project_bound(numpy(compiled(layer)(x)), exact(x, axis))


def test_in_a_graph_whose_batch_size_is_not_known() -> None:
    layer = BatchNormalization()
    model = keras.Sequential([keras.Input((8,)), layer])
    model.compile("sgd", "mse")
    x = offset((64, 8), 1e6)
    model.fit(x, np.zeros_like(x), batch_size=64, verbose=0, shuffle=False)
    assert np.isfinite(numpy(layer.moving_mean)).all()
    spread = 0.99 + 0.01 * x.astype(np.float64).var(0)
    assert largest_error(numpy(layer.moving_variance), spread) <= PROJECT_BOUND


@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_keras_own_layer_loses_them(mean: float) -> None:
    x = offset((64, 8), mean)
    lost = numpy(keras.layers.BatchNormalization()(x, training=True)) - exact(x, -1)
    assert not np.abs(lost).max() <= 10 * PROJECT_BOUND  # NaN included


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{}, {"renorm": True, "renorm_momentum": 0.0}])
def test_a_momentum_of_zero_leaves_nothing_of_what_was_there(options: dict[str, Any], mode: str) -> None:
    x = 1e-2 * offset((64, 3), 0.0)
    layer = BatchNormalization(momentum=0.0, **options)
    layer.build(x.shape)
    for v in layer.non_trainable_variables:
        v.assign(np.full(v.shape, -1e8 if "mean" in v.name else 5000.0))
    called(layer, x, np.ones_like(x), mode=mode, training=True)
    var = x.astype(np.float64).var(0)
    expected = {"moving_mean": x.astype(np.float64).mean(0), "moving_variance": var}
    if options:
        sigma = np.sqrt(var + EPSILON)
        expected |= {"moving_stddev": sigma, "renorm_mean": expected["moving_mean"], "renorm_stddev": sigma}
    for name, value in moving(layer).items():
        assert_close(value, expected[name], "float32", 1e-2)
