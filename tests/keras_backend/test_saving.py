"""What is saved comes back: every option in every format, read in a process that has never seen the model.

Also copies, weights exchanged with Keras' own layer, and files that tf_keras, Keras 3 and Keras 1 have written. All
models are written first and read by one process, which runs this file as a script: a start costs seconds.
"""

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from differentiate import Array, numpy
from keras.initializers import Constant, RandomNormal
from keras.losses import MeanSquaredError

from batchnorm.keras import BatchNormalization, Inverse, Ramp, load_model
from batchnorm.keras.configuration import OURS
from tolerance import assert_same_to_project_bound

STEPS, NAME = 3, "norm"
registered = keras.saving.register_keras_serializable(package="saving_tests")


@registered
def adjust(shape: Any) -> tuple[Array, Array]:
    features = np.arange(4, dtype=np.float32)
    return 1.0 + 0.1 * features, 0.2 - 0.1 * features


@registered
def widening(step: Any) -> Any:
    return 0.1 * step


RMAX = Ramp(1.0, 3.0, first=1, last=9)
CONSTANT = {"rmin": 0.8, "rmax": 1.2, "dmax": 0.3}
LEARNED = {
    "gamma_initializer": Constant(0.5),
    "beta_initializer": RandomNormal(stddev=0.3, seed=1),
    "moving_mean_initializer": "ones",
    "moving_variance_initializer": Constant(4.0),
    "gamma_regularizer": keras.regularizers.L2(0.01),
    "beta_regularizer": "l1",
    "gamma_constraint": keras.constraints.MaxNorm(2.0, axis=0),
    "beta_constraint": "non_neg",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "axis 1": {"axis": 1},
    "axis list": {"axis": [1, -1]},
    "virtual batches": {"virtual_batch_size": 4},
    "virtual batches, axis list": {"virtual_batch_size": 2, "axis": [1, 2]},
    "renorm": {"renorm": True},
    "renorm, constants": {"renorm": True, "renorm_clipping": CONSTANT, "renorm_momentum": 0.7},
    "renorm, schedules": {"renorm": True, "renorm_clipping": {"rmin": Inverse(RMAX), "rmax": RMAX, "dmax": widening}},
    "renorm, tensor": {"renorm": True, "renorm_clipping": {"dmax": keras.ops.convert_to_tensor(0.25)}},
    "adjustment": {"adjustment": adjust},
    "not fused": {"fused": False},
    "synchronized": {"synchronized": True},
    "unbiased": {"running_variance": "unbiased"},
    "activation": {"activation": "silu"},
    "learned": LEARNED,
    "neither scale nor center": {"scale": False, "center": False},
    "mixed_float16": {"dtype": "mixed_float16"},
    "mixed_bfloat16": {"dtype": "mixed_bfloat16"},
    "float16": {"dtype": "float16"},
    "frozen": {"trainable": False},
    "momenta": {"momentum": 0.5, "renorm_momentum": 0.25, "epsilon": 1e-2},
    "fused": {"fused": True, "axis": 1},
    "axis list and renorm": {"axis": [-1, 1], "renorm": True, "momentum": 0.8},
}
RAMP = {"start": 1.0, "end": 3.0, "first": 1, "last": 9}
WIDENING = keras.saving.serialize_keras_object(widening)
WRITTEN: dict[str, dict[str, Any]] = {  # what JSON has other words for
    "axis list": {"kept_axes": [1, -1]},
    "virtual batches, axis list": {"kept_axes": [1, 2]},
    "axis list and renorm": {"kept_axes": [-1, 1]},
    "renorm, schedules": {
        "renorm_clipping": {"rmin": {"inverse": {"ramp": RAMP}}, "rmax": {"ramp": RAMP}, "dmax": WIDENING}
    },
    "renorm, tensor": {"renorm_clipping": {"dmax": 0.25}},
    "adjustment": {"adjustment": keras.saving.serialize_keras_object(adjust)},
}


Seen = tuple[dict[str, Any], list[Array]]  # the configuration; the weights after one more step, and two outputs


def draw(model: Any) -> None:
    """Give every weight numbers of its own; a step of a schedule stays."""
    rng = np.random.default_rng(4)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) if w.shape else w for w in model.get_weights()])


def data(name: str = "plain", seed: int = 3) -> Array:
    shape = (8, 2, 3, 4) if name == "fused" else (8, 5, 4)
    return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype(np.float32)


def built(name: str) -> Any:
    layer = BatchNormalization(name=NAME, **OPTIONS[name])
    return keras.Sequential([keras.Input(data(name).shape[1:]), layer, keras.layers.Dense(2, name="dense")])


def trained(name: str) -> Any:
    """Return a model of which no weight is what a new layer has; they are drawn first, as a frozen one keeps its."""
    model = built(name)
    draw(model)
    model.compile(keras.optimizers.SGD(0.01), MeanSquaredError(), run_eagerly=True)
    for step in range(STEPS):
        x = data(name, step)
        model.train_on_batch(x, np.ones((*x.shape[:-1], 2), np.float32))
    return model


def seen(model: Any, name: str) -> Seen:
    layer, outputs = model.get_layer(NAME), [model(data(name), training=training) for training in (False, True)]
    return json.loads(json.dumps(layer.get_config())), [numpy(a) for a in (*layer.weights, *outputs)]


WAYS = [("keras", ".keras"), ("keras", ".h5"), ("ours", ".keras"), ("ours", ".h5"), ("weights", ".weights.h5")]


def read(name: str, way: tuple[str, str], folder: Path) -> Seen | str:
    """Return what was seen of a file; an error is a result like any other."""
    path = folder / f"{name}{way[1]}"
    try:
        if way[0] == "weights":
            (model := built(name)).load_weights(path)
        else:
            model = {"keras": keras.models.load_model, "ours": load_model}[way[0]](path)
        return seen(model, name)
    except Exception as error:
        return repr(error)


@pytest.fixture(scope="module")
def written_and_read(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Seen], Any]:
    """Write every model in every format, and have all read by another process."""
    folder, written, tests = tmp_path_factory.mktemp("models"), {}, Path(__file__).parents[1]
    for name in OPTIONS:
        model = trained(name)
        model.save(folder / f"{name}.keras")
        model.save(folder / f"{name}.h5")
        model.save_weights(folder / f"{name}.weights.h5")
        written[name] = seen(model, name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests, tests / "keras_backend")))}
    command = [sys.executable, __file__, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5_000:]
    return written, pickle.loads((folder / "seen").read_bytes())


@pytest.mark.parametrize("way", WAYS, ids="".join)
@pytest.mark.parametrize("name", OPTIONS)
def test_another_process_reads_what_was_saved(written_and_read: Any, name: str, way: tuple[str, str]) -> None:
    written, found = written_and_read
    assert not isinstance(found[name, way], str), found[name, way]
    (config, arrays), (own_config, own_arrays) = found[name, way], written[name]
    assert config == own_config
    for mine, other in zip(arrays, own_arrays, strict=True):
        assert_same_to_project_bound(mine, other)


@pytest.mark.parametrize("name", OPTIONS)
def test_training_has_left_nothing_as_a_new_layer_has_it(written_and_read: Any, name: str) -> None:
    (_, arrays), (_, new) = written_and_read[0][name], seen(built(name), name)
    assert all((mine != other).any() for mine, other in zip(arrays, new, strict=True))
    if name == "renorm, schedules":
        assert arrays[-3] == STEPS + 1  # and one to be seen


@pytest.mark.parametrize("name", OPTIONS)
def test_the_config_says_what_was_given(name: str) -> None:
    options = OPTIONS[name]
    config = json.loads(json.dumps(BatchNormalization(name=NAME, **options).get_config()))
    shared = {n: v for n, v in options.items() if n in (*LEARNED, "dtype")}  # Keras' own layer says how to write these
    keras_own = keras.layers.BatchNormalization(**shared).get_config()
    given = {**options, **{n: keras_own[n] for n in shared}}
    said = {n: v for n, v in config.items() if n not in OURS or v != OURS[n]}  # the rest may be left out
    assert said == {**BatchNormalization(name=NAME).get_config(), **given, **WRITTEN.get(name, {})}
    assert BatchNormalization.from_config(config).get_config() == config


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "config": lambda layer: _with_weights_of(layer, type(layer).from_config(layer.get_config())),
    "clone": lambda layer: _with_weights_of(layer, keras.models.clone_model(_alone(layer)).layers[0]),
}


def _alone(layer: Any) -> Any:
    return keras.Sequential([keras.Input(data().shape[1:]), layer])


def _with_weights_of(layer: Any, new: Any) -> Any:
    new = _alone(new).layers[0]
    assert not np.array_equal(new.get_weights()[-1], layer.get_weights()[-1])
    new.set_weights(layer.get_weights())
    return new


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", ["learned", "adjustment", "renorm, schedules", "axis list", "virtual batches"])
def test_a_copy_is_equal_and_another(name: str, way: str) -> None:
    layer = trained(name).get_layer(NAME)
    before, x = layer.get_weights(), data(name)
    again = COPIES[way](layer)
    assert (type(again), again.get_config()) == (BatchNormalization, layer.get_config())
    for training in (False, True):  # the second call moves what is the copy's own
        assert_same_to_project_bound(numpy(again(x, training=training)), numpy(layer(x, training=training)))
    for mine, other in zip(again.get_weights(), layer.get_weights(), strict=True):
        assert_same_to_project_bound(mine, other)
    layer.set_weights(before)
    assert (numpy(again.moving_mean) != numpy(layer.moving_mean)).all()


@pytest.mark.parametrize("options", [{}, {"renorm": True, "renorm_clipping": CONSTANT}, {"scale": False, "axis": 1}])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("by_file", [True, False])
def test_weights_go_to_and_from_keras(options: dict[str, Any], order: int, by_file: bool, tmp_path: Path) -> None:
    kinds = [BatchNormalization, keras.layers.BatchNormalization][::order]
    giver, taker = (keras.Sequential([keras.Input((5, 4)), kind(**options)]) for kind in kinds)
    draw(giver)
    x = data()
    if by_file:
        giver.save_weights(tmp_path / "giver.weights.h5")
        taker.load_weights(tmp_path / "giver.weights.h5")
    else:
        taker.set_weights(giver.get_weights())
    for training in (False, True):  # the second shows that M and S are where they belong
        assert_same_to_project_bound(numpy(taker(x, training=training)), numpy(giver(x, training=training)))
    for mine, other in zip(taker.get_weights(), giver.get_weights(), strict=True):
        assert_same_to_project_bound(mine, other)


def test_weights_of_a_layer_without_a_schedule_start_at_step_zero(tmp_path: Path) -> None:
    constant, scheduled = (trained(f"renorm, {name}").get_layer(NAME) for name in ("constants", "schedules"))
    _alone(constant).save_weights(tmp_path / "constant.weights.h5")
    assert int(scheduled.step) == STEPS
    _alone(scheduled).load_weights(tmp_path / "constant.weights.h5")
    assert int(scheduled.step) == 0
    for mine, other in zip(scheduled.weights[:-1], constant.weights, strict=True):
        np.testing.assert_array_equal(numpy(mine), numpy(other))


@keras.saving.register_keras_serializable(package="saving_tests")
class Ghost(BatchNormalization):
    """A layer of somebody's, with a constructor of its own."""

    def __init__(self, size: int, name: str | None = None) -> None:
        super().__init__(virtual_batch_size=size, name=name)

    def get_config(self) -> dict[str, Any]:
        return {"size": self.virtual_batch_size, "name": self.name}


def test_a_layer_derived_from_it_comes_back() -> None:
    again = Ghost.from_config(Ghost(4, name="mine").get_config())
    assert (type(again), again.virtual_batch_size, again.name, again.axis) == (Ghost, 4, "mine", -1)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    def model(*shape: int) -> Any:
        return keras.Sequential([keras.Input(shape), BatchNormalization(axis=[1, 3])])

    model(2, 5, 3).save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match="shape"):
        model(3, 5, 2).load_weights(tmp_path / "a.weights.h5")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "seen").write_bytes(
        pickle.dumps({(name, way): read(name, way, place) for name in OPTIONS for way in WAYS})
    )
