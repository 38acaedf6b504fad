"""The signature is the classic one, and what cannot be is refused: each message names the value and the way out."""

import inspect
import json
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from differentiate import BACKEND, moving, numpy

from batchnorm.errors import ArgumentError, ShapeError
from batchnorm.keras import BatchNormalization, Ramp

X = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32)


def test_the_signature_is_the_classic_one() -> None:
    ours = inspect.signature(BatchNormalization.__init__).parameters
    classic = inspect.signature(tf_keras.layers.BatchNormalization.__mro__[1].__init__).parameters
    expected = {n: p.default for n, p in classic.items() if n != "synchronized"}
    assert {n: p.default for n, p in ours.items()} == expected
    assert list(ours) == list(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.5}, "`momentum` must lie in [0, 1], got 1.5"),
        ({"momentum": None}, "`momentum` must be a number or a scalar array, got NoneType"),
        ({"momentum": float("nan")}, "`momentum` must lie in [0, 1], got nan"),
        ({"renorm_momentum": -0.1}, "`renorm_momentum` must lie in [0, 1], got -0.1"),
        ({"epsilon": 0}, "`epsilon` must be a positive finite number, got 0.0"),
        ({"axis": 1.5}, "`axis` must be an int or a non-empty sequence of ints, the axes to keep, got 1.5"),
        ({"axis": []}, "`axis` must be an int or a non-empty sequence of ints, the axes to keep, got []"),
        ({"virtual_batch_size": 0}, "`virtual_batch_size` must be None or an int ≥ 1, got 0"),
        ({"virtual_batch_size": 2.0}, "`virtual_batch_size` must be None or an int ≥ 1, got 2.0"),
        (
            {"virtual_batch_size": 2, "adjustment": len},
            "`adjustment` and `virtual_batch_size` exclude one another, got both (virtual_batch_size=2)",
        ),
        ({"adjustment": 3}, "`adjustment` must be None or a function (shape) -> (scale, shift), got 3"),
        (
            {"renorm": True, "renorm_clipping": {"rmx": 2, "rmin": 0.5}},
            "\"dmax\", got 'rmx' in {'rmx': 2, 'rmin': 0.5}",
        ),
        ({"renorm": True, "renorm_clipping": 3}, "`renorm_clipping` must be None or a dictionary, got 3"),
        (
            {"renorm": True, "renorm_clipping": {"rmin": 3, "rmax": 2}},
            "`renorm_clipping`: `rmin` must not exceed `rmax`=2, got 3",
        ),
        (
            {"renorm": True, "renorm_clipping": {"dmax": -1}},
            "`renorm_clipping`: `dmax` must be None, a number ≥ 0 or a function of the step, got -1",
        ),
        ({"renorm": True, "renorm_clipping": {"dmax": np.ones(2)}}, "takes scalars, got one of shape (2,)"),
        ({"fused": "yes"}, "`fused` must be None, True or False, got 'yes'"),
        ({"fused": True, "renorm": True}, "`fused=True` excludes `renorm`, got renorm=True"),
        ({"fused": True, "virtual_batch_size": 2}, "excludes `virtual_batch_size`, got virtual_batch_size=2"),
        ({"fused": True, "adjustment": len}, "excludes `adjustment`, got adjustment=<built-in function len>"),
        ({"fused": True, "synchronized": True}, "excludes `synchronized`, got synchronized=True"),
        ({"fused": True, "dtype": "float64"}, "excludes `dtype`, got dtype='float64'"),
        ({"fused": True, "axis": [1, 3]}, "`fused=True` needs one axis, that of the channels: "),
        ({"fused": True, "axis": 2}, "got axis=2 (fused=None takes any)"),
        ({"synchronized": 1}, "`synchronized` must be a bool, got 1"),
        ({"running_variance": "sample"}, "`running_variance` must be "),
        ({"renorm_clipping": {"rmax": -1}}, "`rmax` must be None, a number ≥ 0 or a function of the step, got -1"),
        ({"renorm": True, "renorm_clipping": {"rmax": Ramp}}, "got <class 'batchnorm.renorm.Ramp'>"),
        ({"activation": "swish"}, "got 'swish' (apply any other one to the output)"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        BatchNormalization(**options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"axis": 4}, (None, 3, 3, 2), "`axis` must lie in [-4, 3] for an input of rank 4, got 4"),
        ({"axis": (1, -3)}, (None, 3, 3, 2), "`axis` must not name an axis twice, got (1, -3)"),
        ({"axis": (0, 1)}, (4, 3), "`axis` must leave an axis to reduce over"),
        (
            {},
            (None, 3, None),
            "`axis` must name axes whose size is known when the layer is built, got axis=-1 for an input",
        ),
        (
            {"fused": True},
            (None, 3, 2),
            "channels lie along axis 1 or −1, got axis=-1 for an input of shape (None, 3, 2)",
        ),
        ({"fused": True, "axis": 3}, (None, 3, 3, 3, 2), "got axis=3 for an input of shape (None, 3, 3, 3, 2)"),
        ({"virtual_batch_size": 2, "axis": 0}, (4, 3), "splits axis 0, which `axis` must not keep, got axis=0"),
    ],
    ids=str,
)
def test_an_input_that_does_not_fit_is_refused(options: dict[str, Any], shape: tuple[Any, ...], message: str) -> None:
    with pytest.raises((ArgumentError, ShapeError)) as error:
        BatchNormalization(**options).build(shape)
    assert message in str(error.value)


def test_integers_of_numpy_are_integers() -> None:
    layer = BatchNormalization(np.int64(1), virtual_batch_size=np.int64(2))
    layer.build((4, 3, 2))
    assert json.loads(json.dumps(layer.get_config()))["virtual_batch_size"] == 2


def test_clips_are_kept_where_they_are_not_used_yet() -> None:
    layer = BatchNormalization(renorm_clipping={"rmax": 2.0})
    layer.build((4, 3))
    assert len(layer.weights) == 4
    assert layer.get_config()["renorm_clipping"] == {"rmax": 2.0}


def test_an_argument_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="virtual_batchsize"):
        BatchNormalization(virtual_batchsize=3)


@pytest.mark.parametrize("made", [3, (1.0, 2.0, 3.0), (np.ones(5), 0.0)], ids=str)
def test_what_an_adjustment_may_return(made: Any) -> None:
    layer = BatchNormalization(adjustment=lambda shape: made)
    layer.build(X.shape)
    before = moving(layer)
    with pytest.raises((ArgumentError, ShapeError), match="`adjustment` must return"):
        layer(X, training=True)
    for name, value in moving(layer).items():  # a failed call changes no state
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("fused", [None, False])
def test_which_operations_normalise(fused: bool | None) -> None:
    expected = "batchnorm.torch" if BACKEND == "torch" and fused is None else "keras.ops"
    assert BatchNormalization(fused=fused).implementation == expected


def _spread(layer: BatchNormalization) -> float:
    return float(numpy(layer(100.0 * X, training=True)).std())


def test_a_clip_value_may_change_from_step_to_step() -> None:
    layer = BatchNormalization(renorm=True, renorm_clipping={"rmax": Ramp(1.0, 3.0, 0, 2), "rmin": 0.0, "dmax": 0.0})
    spread = []
    for _ in range(4):
        spread.append(round(_spread(layer), 1))
    expected = [1.0, 2.0, 3.0, 3.0]
    assert spread == expected
    assert int(layer.step) == len(expected)


def test_a_clip_value_may_be_a_variable() -> None:
    bound = keras.Variable(1.0)
    layer = BatchNormalization(renorm=True, renorm_clipping={"rmax": bound, "rmin": 0.0, "dmax": 0.0})
    assert round(_spread(layer), 1) == 1.0
    bound.assign(2.0)
    assert round(_spread(layer), 1) == 2.0
    assert layer.get_config()["renorm_clipping"] == {"rmin": 0.0, "rmax": 2.0, "dmax": 0.0}
    assert len(layer.weights) == 7  # the variable is not the layer's own
