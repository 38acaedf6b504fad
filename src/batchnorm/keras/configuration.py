"""The layer as a configuration, and back: our own, Keras 3's, and those the classic layers have written."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import keras
from keras import constraints, initializers, regularizers

from batchnorm.errors import ArgumentError
from batchnorm.keras.arguments import Held
from batchnorm.keras.namespace import ops
from batchnorm.renorm import Inverse, Ramp, Renorm

SERIALIZED: dict[str, Any] = {
    **{f"{name}_initializer": initializers for name in ("beta", "gamma", "moving_mean", "moving_variance")},
    **{f"{name}_regularizer": regularizers for name in ("beta", "gamma")},
    **{f"{name}_constraint": constraints for name in ("beta", "gamma")},
}
PLAIN = ("momentum", "epsilon", "center", "scale", "renorm", "renorm_momentum", "fused", "virtual_batch_size")
# Which keras.layers.BatchNormalization does not know: left out where they say nothing, so that it reads the rest.
OURS: dict[str, Any] = {
    "fused": None,
    "virtual_batch_size": None,
    "running_variance": None,
    "activation": None,
    "adjustment": None,
}
EXTRAS: dict[str, Any] = {"synchronized": False, "running_variance": None, "activation": None}
OF_THE_MODEL = ("batch_input_shape", "input_dtype")  # which the first layer of Keras 1 and 2 carried along
OLD_NAMES = {"gamma_init": "gamma_initializer", "beta_init": "beta_initializer"}  # Keras 1


def clipping_of(renorm: Renorm) -> dict[str, Any] | None:
    """Return the clip values as the user has given them."""
    return {n: c.value if isinstance(c, Held) else c for n, c in renorm.clipping.items()} or None


def _clip_written(clip: Any) -> Any:
    if isinstance(clip, Ramp):
        return {"ramp": asdict(clip)}
    if isinstance(clip, Inverse):
        return {"inverse": _clip_written(clip.of)}
    if callable(clip):
        return keras.saving.serialize_keras_object(clip)
    return float(ops.convert_to_numpy(ops.convert_to_tensor(clip)) if hasattr(clip, "dtype") else clip)


def _clip_read(clip: Any) -> Any:
    if not isinstance(clip, Mapping):
        return clip
    if "ramp" in clip:
        return Ramp(**clip["ramp"])
    if "inverse" in clip:
        return Inverse(_clip_read(clip["inverse"]))
    return keras.saving.deserialize_keras_object(dict(clip))


def written(layer: Any) -> dict[str, Any]:
    """Return the arguments of a layer as JSON can hold them."""
    several = isinstance(layer.axis, tuple)
    config: dict[str, Any] = {"axis": list(layer.axis) if several else layer.axis}
    if several:
        config["kept_axes"] = list(layer.axis)  # Keras' reader of H5 files drops a list called `axis`
    config |= {name: getattr(layer, name) for name in (*PLAIN, *EXTRAS)}
    config |= {name: module.serialize(getattr(layer, name)) for name, module in SERIALIZED.items()}
    clips = layer.renorm_clipping
    config["renorm_clipping"] = None if clips is None else {n: _clip_written(c) for n, c in clips.items()}
    adjustment = layer.adjustment
    config["adjustment"] = None if adjustment is None else keras.saving.serialize_keras_object(adjustment)
    if layer.virtual_batch_size is not None:  # by `fused` this is told from what the classic layer has written
        return config
    return {name: value for name, value in config.items() if name not in OURS or value != OURS[name]}


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration, whoever has written it, as arguments of the layer.

    Raises:
        ArgumentError: if it has lost its axes on the way, or is of a mode that batch normalization no longer has.
    """
    arguments = {OLD_NAMES.get(name, name): value for name, value in config.items()}
    axes = _axes(arguments)
    arguments |= {} if axes is None else {"axis": axes}
    if arguments.pop("mode", 0) != 0:
        raise ArgumentError(
            f"`mode` must be 0, normalisation per feature, got {config['mode']!r} (Keras 1 had others; 2 is "
            "training=True here, 1 is keras.layers.LayerNormalization)"
        )
    for name in OF_THE_MODEL:
        arguments.pop(name, None)
    for name in ("gamma_regularizer", "beta_regularizer"):
        penalty = arguments.get(name)
        if isinstance(penalty, Mapping) and penalty.get("name") == "WeightRegularizer":  # Keras 1
            arguments[name] = regularizers.L1L2(penalty["l1"], penalty["l2"])
    if arguments.get("renorm_clipping") is not None:
        arguments["renorm_clipping"] = {n: _clip_read(c) for n, c in arguments["renorm_clipping"].items()}
    if isinstance(arguments.get("adjustment"), Mapping):
        arguments["adjustment"] = keras.saving.deserialize_keras_object(arguments["adjustment"])
    return arguments


def _axes(config: dict[str, Any]) -> Any:
    axes = config.pop("kept_axes", None)
    if axes is None and "axis" not in config and "momentum" in config:
        raise ArgumentError(
            "`axis` is missing from this configuration: Keras' reader of H5 files drops it where it is a list "
            "(batchnorm.keras.load_model keeps it)"
        )
    axes = config.get("axis") if axes is None else axes
    classic = "fused" not in config and config.get("virtual_batch_size") is not None  # ours writes `fused`
    if classic and isinstance(axes, Sequence) and min(axes) > 1:
        return [a - 1 for a in axes]  # once built, the classic layer counted its axis of groups, behind the batch
    return axes
