"""Twenty training steps beside the classic layer, tf_keras', option by option: outputs, gradients, every statistic."""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from differentiate import Array, Call, called, moving

from batchnorm.keras import BatchNormalization
from tolerance import assert_same_to_project_bound

STEPS, RATE = 20, 0.05


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...] = (12, 5, 4)
    options: dict[str, Any] = field(default_factory=dict)
    masked: bool = False
    classic: dict[str, Any] = field(default_factory=dict)  # what the classic layer is told besides


CLIPPED = {"renorm": True, "renorm_clipping": {"rmin": 0.8, "rmax": 1.2, "dmax": 0.3}, "renorm_momentum": 0.9}


def adjust(shape: Any) -> tuple[Array, Array]:
    features = np.arange(int(shape[-1]), dtype=np.float32)
    return 1.0 + 0.1 * features, 0.2 - 0.1 * features


CASES = {
    "plain": Case(options={"momentum": 0.9}),
    "defaults, two axes": Case((32, 6)),
    "neither scale nor center": Case(options={"scale": False, "center": False}),
    "initializers": Case(options={"gamma_initializer": "zeros", "moving_mean_initializer": "ones", "momentum": 0.5}),
    "renorm, clipped": Case(options=CLIPPED),
    "renorm, unclipped": Case(options={"renorm": True, "renorm_momentum": 0.8, "momentum": 0.7}),
    "renorm, one bound": Case(options={"renorm": True, "renorm_clipping": {"rmax": 1.1}}),
    "virtual batches": Case(options={"virtual_batch_size": 4, "momentum": 0.8}),
    "virtual batches, as large as the batch": Case(options={"virtual_batch_size": 12}),
    "virtual batches and renorm": Case(options={"virtual_batch_size": 3, **CLIPPED}),
    "virtual batches and several axes": Case((6, 5, 4, 3), {"virtual_batch_size": 2, "axis": [1, -1]}),
    "adjustment": Case(options={"adjustment": adjust}),
    "adjustment and renorm": Case(options={"adjustment": adjust, **CLIPPED}),
    "axis 1": Case(options={"axis": 1}),
    "axes": Case((6, 5, 4, 3), {"axis": [1, 3], "momentum": 0.6}),
    "axes and renorm": Case((6, 5, 4, 3), {"axis": [1, 2], **CLIPPED}),
    "fused": Case((6, 5, 4, 3), {"fused": True, "momentum": 0.9}),
    "fused, rank 5": Case((4, 3, 2, 4, 3), {"fused": True, "momentum": 0.9}),
    "not fused": Case((6, 5, 4, 3), {"fused": False, "momentum": 0.9}),
    "images": Case((6, 5, 4, 3), {"momentum": 0.9}, classic={"fused": False}),
    "frozen": Case(options={"trainable": False, "moving_mean_initializer": "ones"}),
    "mask": Case(options={"momentum": 0.9}, masked=True),
    "mask, images": Case((6, 5, 4, 3), {"fused": False}, masked=True),
    "mask and renorm": Case(options=CLIPPED, masked=True),
}


def _classic(case: Case) -> Any:
    layer = tf_keras.layers.BatchNormalization(**{**case.options, **case.classic})
    layer.build((None, *case.shape[1:]))
    return layer


def _called_classic(layer: Any, x: Array, dy: Array, call: dict[str, Any]) -> Call:
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, **call)
        loss = tf.reduce_sum(y * dy)
    dx, *gradients = tape.gradient(loss, [x, *layer.trainable_variables])
    return Call(y.numpy(), dx.numpy(), [g.numpy() for g in gradients])


def _compare(ours: Call, classic: Call) -> None:
    for mine, other in zip(
        (ours.y, ours.dx, *ours.gradients), (classic.y, classic.dx, *classic.gradients), strict=True
    ):
        assert_same_to_project_bound(mine, other.reshape(mine.shape))


def _learn(variables: list[Any], gradients: list[Array]) -> None:
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign(np.asarray(variable) - RATE * gradient.reshape(variable.shape).astype(np.float32))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_twenty_steps_are_those_of_the_classic_layer(case: Case) -> None:
    rng = np.random.default_rng(7)
    ours, classic = BatchNormalization(**case.options), _classic(case)
    ours.build((None, *case.shape[1:]))
    for step in range(STEPS):
        x = rng.normal(2.0, 3.0, case.shape).astype(np.float32) * (1.0 + 0.05 * step)
        dy = rng.normal(size=case.shape).astype(np.float32)
        call: dict[str, Any] = {"training": True}
        if case.masked:
            call["mask"] = rng.random(case.shape[:-1]) < 0.7
        mine, other = called(ours, x, dy, **call), _called_classic(classic, x, dy, call)
        _compare(mine, other)
        for (name, value), variable in zip(moving(ours).items(), classic.non_trainable_variables, strict=True):
            assert variable.name.split(":")[0].endswith(name)
            assert_same_to_project_bound(value, variable.numpy().reshape(value.shape))
        _learn(ours.trainable_variables, mine.gradients)
        _learn(classic.trainable_variables, mine.gradients)
    _compare(called(ours, x, dy, training=False), _called_classic(classic, x, dy, {"training": False}))


KERAS = {n: c for n, c in CASES.items() if not {"virtual_batch_size", "adjustment", "fused"} & set(c.options)}
KERAS = {n: c for n, c in KERAS.items() if isinstance(c.options.get("axis", -1), int)}


@pytest.mark.parametrize("case", KERAS.values(), ids=KERAS)
def test_twenty_steps_are_those_of_keras_own_layer(case: Case) -> None:
    rng = np.random.default_rng(8)
    layers = [kind(**case.options) for kind in (BatchNormalization, keras.layers.BatchNormalization)]
    for _ in range(STEPS):
        x, dy = (rng.normal(1.0, 2.0, case.shape).astype(np.float32) for _ in range(2))
        call: dict[str, Any] = {"training": True}
        if case.masked:
            call["mask"] = rng.random(case.shape[:-1]) < 0.7
        mine, other = (called(layer, x, dy, **call) for layer in layers)
        _compare(mine, other)
        for name, value in moving(layers[0]).items():
            assert_same_to_project_bound(value, moving(layers[1])[name])
        for layer in layers:
            _learn(layer.trainable_variables, mine.gradients)
