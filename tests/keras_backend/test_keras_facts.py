"""Facts that Keras' own test file of the layer establishes, of this layer."""

from typing import Any

import keras
import numpy as np
import pytest
from differentiate import moving, numpy

from batchnorm.keras import BatchNormalization
from tolerance import assert_close

PAIRS = np.array([[2.0, 7.0], [4.0, 7.0]], np.float32)  # what is real of every sample: means 3 and 7, variances 1 and 0


@pytest.mark.parametrize("synchronized", [False, True])
def test_an_output_without_any_real_sample_is_finite(synchronized: bool) -> None:
    layer = BatchNormalization(scale=False, center=False, synchronized=synchronized)
    y = layer(np.zeros((3, 4), np.float32), mask=np.zeros(3, np.float32), training=True)
    np.testing.assert_array_equal(numpy(y), np.zeros((3, 4)))


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("padding", [0.0, 0.25, 1.0])
def test_fit_leaves_out_what_masking_marks(padding: float, run_eagerly: bool) -> None:
    x = np.stack([np.concatenate([PAIRS, np.full((3, 2), padding, np.float32)])] * 6)
    layer, given = BatchNormalization(momentum=0.0), keras.Input((None, 2))
    model = keras.Model(given, layer(keras.layers.Masking(mask_value=padding)(given)))
    model.compile("sgd", "mse", run_eagerly=run_eagerly, jit_compile=False)
    model.fit(x, x, batch_size=6, epochs=2, verbose=0)
    assert_close(moving(layer)["moving_mean"], [3.0, 7.0], "float32", 4.0)
    assert_close(moving(layer)["moving_variance"], [1.0, 0.0], "float32", 4.0)


def test_statistics_too_large_for_float16_are_kept_under_autocast() -> None:
    layer = BatchNormalization()
    layer.build((None, 3))
    large = np.full(3, 1e5, np.float32)  # float16 ends at 65504
    with keras.src.backend.AutocastScope("float16"):
        layer.moving_variance.assign(large)
        np.testing.assert_array_equal(numpy(layer.moving_variance.value), large)


@pytest.mark.parametrize("mask", [(2, 3, 1), (1, 3, 1), (2, 1, 1), (3, 4)])
def test_a_mask_broadcasts_to_the_samples(mask: tuple[int, ...]) -> None:
    layer = BatchNormalization(momentum=0.0)
    y = layer(np.ones((2, 3, 4, 5), np.float32), training=True, mask=np.ones(mask, np.float32))
    assert_close(numpy(y), np.zeros((2, 3, 4, 5)), "float32")
    assert_close(moving(layer)["moving_mean"], np.ones(5), "float32")
    assert_close(moving(layer)["moving_variance"], np.zeros(5), "float32")


def test_what_is_trainable_follows_the_switch() -> None:
    layer: Any = BatchNormalization()
    layer.build((None, 4))
    counts = []
    for trainable in (True, False, True):
        layer.trainable = trainable
        counts.append((len(layer.weights), len(layer.trainable_weights), len(layer.non_trainable_weights)))
    assert counts == [(4, 2, 2), (4, 0, 4), (4, 2, 2)]


@pytest.mark.parametrize("bounded", [False, True])
def test_renorm_infers_by_the_moving_statistics(bounded: bool) -> None:
    clips = {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0} if bounded else None
    x = np.random.default_rng(0).normal(4.0, 2.0, (8, 3)).astype(np.float32)
    renorm, plain = BatchNormalization(renorm=True, renorm_clipping=clips), BatchNormalization()
    for layer in (renorm, plain):
        layer.build(x.shape)
        layer.moving_mean.assign([1.0, 2.0, 3.0])
        layer.moving_variance.assign([4.0, 1.0, 0.25])
    assert_close(numpy(renorm(x)), numpy(plain(x)), "float32", 16.0)
