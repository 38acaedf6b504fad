"""Keras' own conformance test of a layer, and what its tests of batch normalization ask, of this layer."""

from typing import Any

import keras
import numpy as np
import pytest
from differentiate import BACKEND, called, moving, numpy
from keras.src.testing import TestCase

from batchnorm.keras import BatchNormalization, Ramp
from tolerance import assert_close

CLIPPING = {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0}


@keras.saving.register_keras_serializable(package="conformance")
def doubled(shape: Any) -> tuple[float, float]:
    return 2.0, 0.0


CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, int]]] = {  # trainable weights, others
    "both": ({"center": True, "scale": True}, (2, 3), (2, 2)),
    "neither": ({"center": False, "scale": False}, (2, 3), (0, 2)),
    "images": ({}, (2, 4, 4, 3), (2, 2)),
    "channels first": ({"axis": 1}, (2, 3, 4, 4), (2, 2)),
    "several axes": ({"axis": [1, 3]}, (2, 3, 4, 4), (2, 2)),
    "renorm": ({"renorm": True, "renorm_clipping": CLIPPING}, (8, 3), (2, 5)),
    "renorm by a schedule": ({"renorm": True, "renorm_clipping": {"rmax": Ramp(1.0, 3.0, 0, 9)}}, (8, 3), (2, 6)),
    "virtual batches": ({"virtual_batch_size": 2}, (6, 3), (2, 2)),
    "a remainder of virtual batches": ({"virtual_batch_size": 2}, (5, 3), (2, 2)),
    "adjustment": ({"adjustment": doubled}, (6, 3), (2, 2)),
    "fused": ({"fused": True}, (2, 4, 4, 3), (2, 2)),
    "not fused": ({"fused": False}, (2, 4, 4, 3), (2, 2)),
    "synchronized": ({"synchronized": True}, (6, 3), (2, 2)),
    "activation": ({"activation": "gelu"}, (6, 3), (2, 2)),
    "unbiased": ({"running_variance": "unbiased"}, (6, 3), (2, 2)),
    "penalties": (
        {"beta_regularizer": "l2", "gamma_regularizer": "l1", "beta_constraint": "non_neg"},
        (6, 3),
        (2, 2),
    ),
}


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")  # Keras' own test gives a generator,
@pytest.mark.filterwarnings("ignore:The model does not have any trainable:UserWarning")  # and trains what has none
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_keras_conformance(case: str, training: bool) -> None:
    options, shape, (trained, others) = CASES[case]
    TestCase("run_layer_test").run_layer_test(
        BatchNormalization,
        init_kwargs=options,
        call_kwargs={"training": training},
        input_shape=shape,
        expected_output_shape=shape,
        expected_num_trainable_weights=trained,
        expected_num_non_trainable_weights=others,
        expected_num_non_trainable_variables=others,
        expected_num_seed_generators=0,
        expected_num_losses=2 if case == "penalties" else 0,
        supports_masking=True,
    )


@pytest.mark.parametrize("axis", [-1, 1, (1, 3)])
def test_outputs_of_training_are_standard(axis: Any) -> None:
    x = np.random.default_rng(0).normal(5.0, 10.0, (200, 4, 4, 3)).astype(np.float32)
    y = numpy(BatchNormalization(axis)(x, training=True))
    kept = {a % 4 for a in (axis if isinstance(axis, tuple) else (axis,))}
    reduced = tuple(i for i in range(4) if i not in kept)
    var = x.astype(np.float64).var(reduced)
    assert_close(y.mean(reduced), np.zeros_like(var), "float32")
    assert_close(y.std(reduced), np.sqrt(var / (var + 1e-3)), "float32")


def test_a_layer_that_is_not_trainable_infers() -> None:
    layer = BatchNormalization(momentum=0.8)
    layer.build((4, 2))
    before = moving(layer)
    layer.trainable = False
    x = np.random.default_rng(1).normal(5.0, 10.0, (200, 2)).astype(np.float32)
    assert_close(numpy(layer(x, training=True)), x / np.sqrt(1.0 + 1e-3), "float32", 40.0)
    assert moving(layer)["moving_mean"].tolist() == before["moving_mean"].tolist()
    layer.trainable = True
    layer(x, training=True)
    assert_close(moving(layer)["moving_mean"], 0.2 * x.astype(np.float64).mean(0), "float32", 10.0)


def test_large_values_in_half_precision() -> None:
    layer = BatchNormalization(dtype="mixed_float16")
    x = np.array([[60000.0], [-60000.0]], np.float32)  # the square of either overflows
    y = layer(keras.ops.cast(x, "float16"), training=True)
    assert np.isfinite(numpy(y)).all()
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    assert moving(layer)["moving_variance"][0] > 1e6


def test_statistics_of_renorm_start_where_the_initializers_say() -> None:
    layer = BatchNormalization(
        renorm=True,
        moving_mean_initializer=keras.initializers.Constant(2.0),
        moving_variance_initializer=keras.initializers.RandomUniform(1.0, 4.0, seed=3),
    )
    layer.build((None, 5))
    start = moving(layer)
    assert len(set(start["moving_variance"].tolist())) == 5
    for name in ("moving_stddev", "renorm_stddev"):
        assert_close(start[name], np.sqrt(start["moving_variance"]), "float32", 2.0)
    assert start["renorm_mean"].tolist() == [2.0] * 5


def test_under_renorm_the_biased_variance_is_remembered_whatever_is_asked_for() -> None:
    x = np.random.default_rng(6).normal(size=(4, 2)).astype(np.float32)
    layer = BatchNormalization(renorm=True, running_variance="unbiased", momentum=0.0, renorm_momentum=0.0)
    layer(x, training=True)
    sigma = np.sqrt(x.astype(np.float64).var(0) + 1e-3)
    assert_close(moving(layer)["renorm_stddev"], sigma, "float32", 4.0)
    assert_close(numpy(layer(x)), numpy(layer(x, training=True)), "float32", 8.0)  # prediction is what training does


def test_a_batch_with_inf_is_not_remembered() -> None:
    layer = BatchNormalization(renorm=True, renorm_clipping={"rmax": Ramp(1.0, 3.0, 0, 9)})
    x = np.random.default_rng(2).normal(size=(8, 3)).astype(np.float32)
    layer(x, training=True)
    before = moving(layer)
    for bad in (np.inf, np.nan):
        x[3, 1] = bad
        layer(x, training=True)
    assert {n: v.tolist() for n, v in moving(layer).items()} == {n: v.tolist() for n, v in before.items()}


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch has a front-end to hand tensors to")
@pytest.mark.parametrize("case", CASES)
def test_the_front_end_and_keras_ops_give_the_same(case: str) -> None:
    options, shape, _ = CASES[case]
    rng = np.random.default_rng(4)
    x, dy = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    layers = [BatchNormalization(**{**options, "fused": fused}) for fused in (None, False)]
    assert [layer.implementation for layer in layers] == ["batchnorm.torch", "keras.ops"]
    for _ in range(3):
        one, other = (called(layer, x, dy, training=True) for layer in layers)
        for mine, theirs in zip((one.y, one.dx, *one.gradients), (other.y, other.dx, *other.gradients), strict=True):
            assert_close(mine, theirs, "float32", 64.0)
    for name, value in moving(layers[0]).items():
        assert_close(value, moving(layers[1])[name], "float32", 8.0)
