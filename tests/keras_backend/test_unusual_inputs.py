"""Sizes that the graph does not tell, masks that other layers hand on, and options of unusual types."""

import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from differentiate import BACKEND, Array, moving, numpy

from batchnorm.errors import ArgumentError, ShapeError
from batchnorm.keras import BatchNormalization
from tolerance import assert_close

EPSILON = 1e-3
X = np.random.default_rng(0).normal(2.0, 3.0, (6, 4, 3)).astype(np.float32)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph with sizes that only the run tells is TensorFlow's")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"axis": 1}, {"axis": [1, 2]}, {"virtual_batch_size": 2}, {"renorm": True}])
def test_a_built_layer_knows_its_features_where_the_graph_does_not(options: dict[str, Any], training: bool) -> None:
    import tensorflow as tf

    known, unknown = BatchNormalization(**options), BatchNormalization(**options)
    for layer in (known, unknown):
        layer.build(X.shape)
    traced = tf.function(lambda x: unknown(x, training=training), input_signature=[tf.TensorSpec([None, None, None])])
    assert_close(numpy(traced(X)), numpy(known(X, training=training)), "float32", 4.0)
    for name, value in moving(unknown).items():
        assert_close(value, moving(known)[name], "float32", 4.0)
    with pytest.raises(tf.errors.InvalidArgumentError):
        traced(np.zeros((6, 5, 2), np.float32))


@pytest.mark.parametrize("axis", [-1, 1])
def test_the_shape_of_an_output_may_have_unknown_sizes(axis: int) -> None:
    assert BatchNormalization(axis).compute_output_shape((None, None, None)) == (None, None, None)


def test_building_needs_the_number_of_features() -> None:
    with pytest.raises(ShapeError, match=r"known when the layer is built, got axis=1 for an input of shape \(4, None"):
        BatchNormalization(1).build((4, None, 3))


TOKENS = np.array([[1, 2, 3, 0], [4, 0, 0, 0], [2, 1, 0, 0]])


@pytest.mark.parametrize("width", [3, 4])  # 4: as many as tokens, so that the mask has the shape of (N, C) too
def test_a_mask_of_features_that_is_handed_on_is_ignored(width: int) -> None:
    x = keras.layers.Embedding(5, width, mask_zero=True)(TOKENS)
    masked, plain = BatchNormalization(1, momentum=0.0), BatchNormalization(1, momentum=0.0)
    y = masked(x, training=True)
    assert_close(numpy(y), numpy(plain(numpy(x).astype(np.float32), training=True)), "float32", 4.0)
    for name, value in moving(masked).items():
        assert_close(value, moving(plain)[name], "float32", 4.0)
    with pytest.raises(ShapeError, match="`mask` must broadcast to"):
        BatchNormalization(1)(numpy(x).astype(np.float32)[:, :, :2], training=True, mask=TOKENS != 0)


def test_a_mask_that_is_handed_on_belongs_to_the_first_axes() -> None:
    x = np.random.default_rng(1).normal(size=(4, 4, 4, 3)).astype(np.float32)  # (N, L, H, C): any two axes fit
    x[1, 2:] = x[3, 1:] = 0.0
    layer = BatchNormalization(momentum=0.0)
    layer(_marked(x, (x != 0.0).any((2, 3))), training=True)
    rows = x[(x != 0.0).any((2, 3))].reshape(-1, 3).astype(np.float64)
    assert_close(moving(layer)["moving_mean"], rows.mean(0), "float32")
    assert_close(moving(layer)["moving_variance"], rows.var(0), "float32")


def _marked(x: Array, mask: Array) -> Any:
    """Return x as a layer before would hand it on, with a mask."""
    given = keras.ops.convert_to_tensor(x)
    given._keras_mask = keras.ops.convert_to_tensor(mask)
    return given


NUMBERS: dict[str, Callable[[float], Any]] = {
    "float32": np.float32,
    "float16": np.float16,
    "0-d array": np.array,
    "tensor": keras.ops.convert_to_tensor,
    "variable": keras.Variable,
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_any_type_are_taken_and_saved(kind: str) -> None:
    make = NUMBERS[kind]
    layer = BatchNormalization(
        momentum=make(0.75),
        epsilon=make(0.125),
        renorm_momentum=make(0.5),
        renorm=True,
        renorm_clipping={"rmax": make(2.0), "rmin": make(0.5)},
    )
    config = json.loads(json.dumps(layer.get_config()))
    assert (config["momentum"], config["epsilon"], config["renorm_momentum"]) == (0.75, 0.125, 0.5)
    assert config["renorm_clipping"] == {"rmax": 2.0, "rmin": 0.5}
    assert all(type(v) is float for v in (layer.momentum, layer.epsilon, layer.renorm_momentum))
    again = BatchNormalization.from_config(config)
    assert_close(numpy(again(X, training=True)), numpy(layer(X, training=True)), "float32", 4.0)


def test_bools_of_numpy_are_saved() -> None:
    layer = BatchNormalization(center=np.bool_(False), scale=np.bool_(True), renorm=np.bool_(False))
    config = json.loads(json.dumps(layer.get_config()))
    assert (config["center"], config["scale"], config["renorm"]) == (False, True, False)


@pytest.mark.parametrize("name", ["momentum", "epsilon", "renorm_momentum"])
@pytest.mark.parametrize(
    ("value", "told"),
    [("0.9", "got str"), (None, "got NoneType"), (np.ones(2), r"got ndarray of shape \(2,\)"), ([0.9], "got list")],
)
def test_what_is_no_number_is_refused_by_its_type(name: str, value: Any, told: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{name}` must be a number or a scalar array, {told}"):
        BatchNormalization(**{name: value})


def test_attributes_are_none_before_build() -> None:
    layer = BatchNormalization(renorm=True, center=False)
    names = ("gamma", "beta", "moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
    assert [getattr(layer, name) for name in names] == [None] * len(names)
    layer.build((4, 3))
    assert [name for name in names if getattr(layer, name) is None] == ["beta"]
    assert len(layer.weights) == 6


def test_a_plain_config_is_one_of_keras_own_layer() -> None:
    layer = BatchNormalization(axis=1, momentum=0.5, epsilon=0.01, scale=False, name="norm")
    layer(X, training=True)
    own = keras.layers.BatchNormalization.from_config(layer.get_config())
    own.build(X.shape)
    own.set_weights(layer.get_weights())
    assert own.name == "norm"
    assert_close(numpy(own(X)), numpy(layer(X)), "float32", 8.0)


@pytest.mark.parametrize(
    "options", [{"activation": "relu"}, {"virtual_batch_size": 2}, {"running_variance": "unbiased"}]
)
def test_a_config_with_options_is_refused_by_keras_own_layer(options: dict[str, Any]) -> None:
    config = BatchNormalization(**options).get_config()
    assert config.items() >= options.items()
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        keras.layers.BatchNormalization.from_config(config)
