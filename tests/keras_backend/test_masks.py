"""What a mask leaves out is as if it were not there: any axis, one channel, inf and NaN in the padding, weights."""

from typing import Any

import keras
import numpy as np
import pytest
import torch
from differentiate import BACKEND, Array, called, moving, numpy

import truth
from batchnorm.errors import ArgumentError, ShapeError
from batchnorm.keras import BatchNormalization
from tolerance import assert_close

EPSILON, MOMENTUM = 1e-3, 0.75
FUSED = [None, False] if BACKEND == "torch" else [None]
LAYOUTS: list[tuple[tuple[int, ...], Any]] = [
    ((6, 5, 3), -1),
    ((6, 5, 1), -1),
    ((6, 3, 5), 1),
    ((6, 1, 5), 1),
    ((4, 3, 2, 3), -1),
    ((4, 3, 2, 3), (1, 3)),
    ((9, 2), -1),
]


def normal(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype(np.float32)


def reduced(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    kept = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}
    return tuple(i for i in range(len(shape)) if i not in kept)


def spread(mask: Array, shape: tuple[int, ...], axis: Any) -> Array:
    """Return a mask over the axes that are reduced as one over the whole input."""
    full = [n if i in reduced(shape, axis) else 1 for i, n in enumerate(shape)]
    return np.broadcast_to(mask.reshape(full), shape)


@pytest.mark.parametrize("padding", [7.0, 1e30, np.inf, np.nan])
@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_masked_samples_are_as_if_they_were_not_there(
    shape: tuple[int, ...], axis: Any, fused: bool | None, padding: float
) -> None:
    axes = reduced(shape, axis)
    mask = np.random.default_rng(1).random([shape[i] for i in axes]) < 0.6
    everywhere = spread(mask, shape, axis)
    x, dy = np.where(everywhere, normal(shape, 2), np.float32(padding)), normal(shape, 3) * everywhere
    layer = BatchNormalization(axis, MOMENTUM, EPSILON, fused=fused)
    found = called(layer, x, dy, training=True, mask=mask)
    assert np.isfinite(found.y).all()

    kept = tuple(sorted(set(range(len(shape))) - set(axes)))
    leaf = torch.tensor(np.where(everywhere, x, 0.0), dtype=torch.float64, requires_grad=True)
    features = int(np.prod([shape[i] for i in kept]))
    gamma, beta = torch.ones(features).double().requires_grad_(), torch.zeros(features).double().requires_grad_()
    weights = torch.tensor(everywhere.astype(np.float64))
    true = truth.normalise(leaf, axes=kept, gamma=gamma, beta=beta, eps=EPSILON, weights=weights)
    dx, dgamma, dbeta = torch.autograd.grad(true.y, [leaf, gamma, beta], torch.tensor(dy, dtype=torch.float64))
    inside = everywhere.astype(bool)
    assert_close(found.y[inside], true.y.detach().numpy()[inside], "float32", 16.0)
    assert_close(found.dx[inside], dx.numpy()[inside], "float32", 16.0)
    for mine, other in zip(found.gradients, (dgamma, dbeta), strict=True):
        assert_close(mine.ravel(), other.numpy(), "float32", 64.0)
    assert true.mean is not None
    assert true.biased is not None
    after = moving(layer)
    assert_close(after["moving_mean"].ravel(), (1 - MOMENTUM) * true.mean.numpy(), "float32", 4.0)
    expected = MOMENTUM + (1 - MOMENTUM) * true.biased.numpy()
    assert_close(after["moving_variance"].ravel(), expected, "float32", 16.0)


def test_weights_are_repetitions() -> None:
    x, dy = normal((5, 3), 4), normal((5, 3), 5)
    weights = np.array([2, 1, 0, 3, 1], np.float32)
    repeated = np.repeat(x, weights.astype(int), axis=0)
    one, other = BatchNormalization(), BatchNormalization()
    y = called(one, x, dy, training=True, mask=weights).y
    expected = called(other, repeated, np.zeros_like(repeated), training=True).y
    assert_close(np.repeat(y, weights.astype(int), axis=0), expected, "float32", 8.0)
    for name, value in moving(one).items():
        assert_close(value, moving(other)[name], "float32", 8.0)


@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 2}, {"renorm": True}], ids=str)
def test_a_batch_that_is_masked_altogether_is_not_remembered(options: dict[str, Any]) -> None:
    layer = BatchNormalization(moving_mean_initializer="ones", **options)
    x = normal((4, 3), 6)
    found = called(layer, x, x, training=True, mask=np.zeros(4, bool))
    assert_close(found.y, (x - 1.0) / np.sqrt(1.0 + EPSILON), "float32", 4.0)
    fresh = BatchNormalization(moving_mean_initializer="ones", **options)
    fresh.build(x.shape)
    assert {n: v.tolist() for n, v in moving(layer).items()} == {n: v.tolist() for n, v in moving(fresh).items()}


def test_virtual_batches_leave_masked_samples_out() -> None:
    x, dy = normal((7, 3), 7), normal((7, 3), 8)
    mask = np.array([1, 1, 0, 1, 1, 1, 1], bool)
    layer = BatchNormalization(virtual_batch_size=3, momentum=MOMENTUM)  # samples 0, 2, 4, 6 and 1, 3, 5
    found = called(layer, x, dy, training=True, mask=mask)
    for group in ([0, 4, 6], [1, 3, 5]):
        rows = x[group].astype(np.float64)
        expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + EPSILON)
        assert_close(found.y[group], expected, "float32", 16.0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="elsewhere sizes are known when a model is compiled")
@pytest.mark.parametrize("mask", [(5, 4), (1, 4), (5, 1)])
@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 2}], ids=str)
def test_a_mask_whose_sizes_only_the_run_tells(options: dict[str, Any], mask: tuple[int, ...]) -> None:
    import tensorflow as tf

    x, kept = normal((5, 4, 3), 10), np.random.default_rng(12).random(mask) < 0.7
    found = []
    for graph in (True, False):
        layer = BatchNormalization(**options)
        layer.build((None, None, 3))
        given = [tf.TensorSpec([None, None, 3]), tf.TensorSpec([None, None], tf.bool)]
        train = tf.function(lambda x, mask, layer=layer: layer(x, training=True, mask=mask), input_signature=given)
        if graph:
            found.append(numpy(train(x, kept)))
        else:
            found.append(numpy(layer(x, training=True, mask=np.broadcast_to(kept, (5, 4)))))
    assert_close(*found, "float32", 16.0)


@pytest.mark.parametrize("bad", [-1.0, -1, np.nan, np.inf, -np.inf])
def test_weights_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(ArgumentError, match=r"`mask` must be bool, or weights that are finite and ≥ 0"):
        BatchNormalization()(normal((4, 3), 9), training=True, mask=np.array([1, bad, 1, 1]))


@pytest.mark.parametrize(("shape", "mask"), [((4, 3, 2), (3, 4)), ((4, 3, 2), (4, 3, 2)), ((4, 3, 2, 2), (4, 2, 3))])
def test_a_mask_that_does_not_fit_is_refused(shape: tuple[int, ...], mask: tuple[int, ...]) -> None:
    layer = BatchNormalization()
    with pytest.raises(ShapeError, match="`mask` must broadcast to"):
        layer(normal(shape, 9), training=True, mask=np.ones(mask, bool))


def test_a_mask_from_another_layer_reaches_the_statistics() -> None:
    tokens = np.array([[1, 2, 3], [4, 0, 0]])
    embedding, layer = keras.layers.Embedding(5, 3, mask_zero=True), BatchNormalization(momentum=0.0)
    x = embedding(tokens)
    layer(x, training=True)
    rows = numpy(x).reshape(6, 3)[[0, 1, 2, 3]]
    assert_close(moving(layer)["moving_mean"], rows.mean(0), "float32")
    assert_close(moving(layer)["moving_variance"], rows.var(0), "float32")
