"""Files that tf_keras, Keras 3 and Keras 1 have written: every batch normalization in them becomes this layer."""

import json
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from differentiate import numpy
from keras.initializers import Ones
from test_saving import NAME, OPTIONS, data, draw

from batchnorm.errors import ArgumentError
from batchnorm.keras import BatchNormalization, load_model
from tolerance import assert_same_to_project_bound


def _sequential(k: Any, layer: Any) -> Any:
    return k.Sequential([k.Input((5, 4)), layer, k.layers.Dense(2)])


def _functional(k: Any, layer: Any) -> Any:
    x = k.Input((5, 4))
    return k.Model(x, k.layers.Dense(2)(layer(x)))


def _nested(k: Any, layer: Any) -> Any:
    x = k.Input((5, 4))
    return k.Model(x, k.layers.Dense(2)(_functional(k, layer)(k.layers.ReLU()(x))))


def _nested_sequential(k: Any, layer: Any) -> Any:
    x = k.Input((5, 4))
    return k.Model(x, _sequential(k, layer)(k.layers.ReLU()(x)))


FOREIGN: dict[str, tuple[str, dict[str, Any]]] = {
    "Keras": ("keras", {"momentum": 0.8}),
    "Keras, renorm": ("keras", OPTIONS["renorm, constants"]),
    "plain": ("tf_keras", {"momentum": 0.8, "gamma_regularizer": "l2", "axis": 1}),
    "axis list": ("tf_keras", {"axis": [1, 2]}),
    "virtual batches": ("tf_keras", {"virtual_batch_size": 4}),
    "virtual batches, axis list": ("tf_keras", {"virtual_batch_size": 2, "axis": [1, 2], "momentum": 0.5}),
    "renorm": ("tf_keras", OPTIONS["renorm, constants"]),
    "virtual batches, renorm": ("tf_keras", {**OPTIONS["renorm, constants"], "virtual_batch_size": 4}),
    "synchronized": ("tf_keras", {"momentum": 0.8}),
}
SYNCHRONIZED = "layers.experimental.SyncBatchNormalization"


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")  # tf_keras on its own format
@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")  # Keras 3 on Keras 2's list of one input
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("structure", [_sequential, _functional, _nested, _nested_sequential])
@pytest.mark.parametrize("name", FOREIGN)
def test_models_of_others_become_ours(name: str, structure: Any, suffix: str, tmp_path: Path) -> None:
    framework, options = import_module(FOREIGN[name][0]), FOREIGN[name][1]
    kind = attrgetter(SYNCHRONIZED if name == "synchronized" else "layers.BatchNormalization")(framework)
    theirs = structure(framework, kind(name=NAME, **options))
    draw(theirs)
    path, x = tmp_path / f"model{suffix}", data()
    theirs.save(path)
    if name == "synchronized" and suffix == ".keras":
        with pytest.raises(ArgumentError, match=r"a SyncBatchNormalization in it, .*model\.keras'"):
            load_model(path)
        return
    written, ours = path.read_bytes(), load_model(path)
    assert path.read_bytes() == written
    (layer,) = (a for a in ours._flatten_layers() if a.name == NAME)
    assert (type(layer), layer.synchronized) == (BatchNormalization, name == "synchronized")
    for training in (False, True, False):  # the second tells whether the options have come along
        expected = theirs(x, training=training)
        expected = numpy(expected) if framework is keras else expected.numpy()
        assert_same_to_project_bound(numpy(ours(x, training=training)), expected)


def _in_words_of_keras_1(path: Path, mode: int) -> None:
    with h5py.File(path, "r+") as file:
        model = json.loads(file.attrs["model_config"])
        (layer,) = (a for a in model["config"]["layers"] if a["class_name"] == "BatchNormalization")
        kept = {n: layer["config"][n] for n in ("name", "trainable", "axis", "momentum", "epsilon")}
        layer["config"] = {**kept, "gamma_init": "one", "beta_init": "zero", "beta_regularizer": None, "mode": mode}
        file.attrs["model_config"] = json.dumps(model)


def test_a_file_of_keras_1(tmp_path: Path) -> None:
    theirs, path = _sequential(keras, keras.layers.BatchNormalization(momentum=0.7)), tmp_path / "old.hdf5"
    draw(theirs)
    theirs.save(path)
    _in_words_of_keras_1(path, mode=0)
    ours = load_model(path)
    assert_same_to_project_bound(numpy(ours(data())), numpy(theirs(data())))
    layer = ours.layers[0]
    assert (type(layer), layer.momentum, type(layer.gamma_initializer)) == (BatchNormalization, 0.7, Ones)
    with h5py.File(path, "r+") as file:  # as Keras 2.0 wrote a Sequential
        model = json.loads(file.attrs["model_config"])
        file.attrs["model_config"] = json.dumps({**model, "config": model["config"]["layers"]})
    assert_same_to_project_bound(numpy(load_model(path)(data())), numpy(theirs(data())))
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(model)
    _in_words_of_keras_1(path, mode=1)
    with pytest.raises(ArgumentError, match=r"`mode` must be 0, .*, got 1 \(.*keras\.layers\.LayerNormalization"):
        load_model(path)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_axes_that_keras_reader_loses(tmp_path: Path) -> None:
    tf_keras = import_module("tf_keras")  # not above, as the process that reads would pay for it
    _sequential(tf_keras, tf_keras.layers.BatchNormalization(axis=[1, 2])).save(tmp_path / "axes.h5")
    with pytest.raises(ArgumentError, match=r"`axis` is missing .* \(batchnorm\.keras\.load_model keeps it\)"):
        keras.models.load_model(tmp_path / "axes.h5", {"BatchNormalization": BatchNormalization})
    assert load_model(tmp_path / "axes.h5").layers[0].axis == (1, 2)


@pytest.mark.parametrize("name", ["none.keras", "none.h5", "model.txt", "saved_model", ""])
def test_a_path_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("no model")
    (tmp_path / "saved_model").mkdir()
    with pytest.raises(ArgumentError, match=r"`path` must be an existing \.keras, \.h5 or \.hdf5 file, got '.*" + name):
        load_model(tmp_path / name)


def test_a_layer_inside_another_layer(tmp_path: Path) -> None:
    theirs, path = keras.Sequential([keras.Input((5, 4))]), tmp_path / "wrapped.h5"
    theirs.add(keras.layers.TimeDistributed(keras.layers.BatchNormalization(name=NAME)))
    draw(theirs)
    for path in (tmp_path / "wrapped.h5", tmp_path / "wrapped.keras"):
        theirs.save(path)
        ours = load_model(path)
        assert type(ours.layers[0].layer) is BatchNormalization
        assert_same_to_project_bound(numpy(ours(data())), numpy(theirs(data())))


@keras.saving.register_keras_serializable(package="somebody", name="BatchNormalization")
class Doubled(keras.layers.Layer):
    """A layer that shares no more than a name."""

    def call(self, inputs: Any) -> Any:
        return 2.0 * inputs


def test_a_layer_of_that_name_which_is_somebodys_own_stays(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((3,)), Doubled()]).save(tmp_path / "own.keras")
    (layer,) = load_model(tmp_path / "own.keras").layers
    assert type(layer) is Doubled


@pytest.mark.parametrize(
    ("axis", "expected"),
    [([2, 3], (1, 2)), ([1, -1], (1, -1)), ([4], 3), (-1, -1), ([1, 3], (1, 3))],
    ids=str,
)
def test_axes_of_classic_virtual_batches_are_counted_without_the_axis_of_groups(axis: Any, expected: Any) -> None:
    config = {"axis": axis, "momentum": 0.9, "virtual_batch_size": 2}
    assert BatchNormalization.from_config(config).axis == expected


def test_penalties_and_dtypes_of_older_configurations() -> None:
    config = {
        "axis": -1,
        "momentum": 0.9,
        "input_dtype": "float32",
        "batch_input_shape": [None, 4],
        "gamma_regularizer": {"name": "WeightRegularizer", "l1": 0.1, "l2": 0.2},
    }
    layer = BatchNormalization.from_config(config)
    assert (layer.gamma_regularizer.l1, layer.gamma_regularizer.l2) == (0.1, 0.2)


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name=NAME)])
    path = tmp_path / "model.h5"
    model.save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1]["config"]["virtual_batch_size"] = 2
        file.attrs["model_config"] = json.dumps(config)
        names: list[str] = []
        file["model_weights"].visit(lambda n: names.append(n) if "gamma" in n else None)
        del file["model_weights"][names[0]]
        file["model_weights"].create_dataset(names[0], (1, 1, 4), "float32", external=[(str(secret), 0, 16)])
    with pytest.raises(ArgumentError, match="`path` must hold its own weights"):
        load_model(path)


def test_a_file_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((4,)), BatchNormalization()]).save_weights(tmp_path / "a.weights.h5")
    (tmp_path / "text.h5").write_text("no model")
    (tmp_path / "text.keras").write_text("no model")
    for name in ("a.weights.h5", "text.h5", "text.keras"):
        with pytest.raises(ArgumentError, match=r"`path` must hold a model, got .*load_weights"):
            load_model(tmp_path / name)
