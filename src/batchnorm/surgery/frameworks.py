"""How each framework writes a layer of batch normalization down: names, shapes, order, and what the numbers mean."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from batchnorm.conventions import FLAX, KERAS, TORCH, Convention, Estimator
from batchnorm.errors import ArgumentError, ShapeError
from batchnorm.renorm import RENORM_ESTIMATOR, Renorm
from batchnorm.torch.layers import OPTIONS

Numbers = NDArray[Any] | None
ARRAYS = ("gamma", "beta", "mean", "variance", "stddev", "renorm_mean", "renorm_stddev")  # in the order of Keras
DIGITS = 12  # of a momentum
SETTLED = 2**30  # a count of batches after which Haiku corrects its averages no more


@dataclass(frozen=True)
class LayerState:
    """A layer without a framework: per-feature arrays of shape (C,), `momentum` the weight of the NEW observation."""

    mean: NDArray[Any]
    variance: NDArray[Any]
    gamma: Numbers = None
    beta: Numbers = None
    eps: float = TORCH.epsilon
    momentum: float | None = TORCH.momentum
    estimator: Estimator = TORCH.running_variance
    batches: int = 0
    averaged: float = math.inf  # batches behind the averages where they are divided by what these weigh, as Haiku's
    stddev: Numbers = None
    renorm_mean: Numbers = None
    renorm_stddev: Numbers = None
    frozen: bool = False
    options: dict[str, Any] = field(default_factory=dict[str, Any])  # of our layer, that are not its defaults

    def __post_init__(self) -> None:
        """Refuse a layer without statistics, and arrays of different lengths; know what renormalization remembers.

        Raises:
            ArgumentError: if it keeps no running statistics.
            ShapeError: if its arrays have different lengths.
        """
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ARRAYS}
        if arrays["mean"] is None or arrays["variance"] is None:
            raise ArgumentError("the layer keeps no running statistics, and without them there is nothing to go on by")
        if self.renorm_mean is not None:
            object.__setattr__(self, "estimator", RENORM_ESTIMATOR)
        lengths = {name: array.size for name, array in arrays.items() if array is not None}
        if len(set(lengths.values())) > 1:
            raise ShapeError(f"the arrays of a layer have one length, got {lengths}")


TORCHS = {"num_features", "eps", "momentum", "affine", "bias", "track_running_stats", "device", "dtype"}
KERAS_LAYERS = {
    "name", "trainable", "dtype", "axis", "momentum", "epsilon", "center", "scale", "beta_initializer",
    "gamma_initializer", "moving_mean_initializer", "moving_variance_initializer", "beta_regularizer",
    "gamma_regularizer", "beta_constraint", "gamma_constraint", "renorm", "renorm_clipping", "renorm_momentum", "fused",
    "virtual_batch_size", "adjustment", "synchronized", "running_variance", "activation",
}  # fmt: skip
FLAX_LAYERS = {
    "num_features", "use_running_average", "axis", "momentum", "epsilon", "dtype", "param_dtype", "use_bias",
    "use_scale", "bias_init", "scale_init", "axis_name", "axis_index_groups", "use_fast_variance",
    "force_float32_reductions", "promote_dtype", "rngs", "name",
}  # fmt: skip
HAIKUS = {
    "create_scale", "create_offset", "decay_rate", "eps", "scale_init", "offset_init", "axis", "cross_replica_axis",
    "cross_replica_axis_index_groups", "data_format", "name",
}  # fmt: skip


class Framework(NamedTuple):
    """How a framework writes a layer down."""

    read: Callable[[Any, dict[str, Any]], LayerState]
    write: Callable[[LayerState], tuple[Any, dict[str, Any]]]
    convention: Convention
    words: set[str]  # the arguments of its layer
    renorm: bool = False  # whether its layer has batch renormalization


def rest(momentum: float | None) -> float:
    """Return 1 − momentum, as it would be written down.

    >>> rest(0.9)
    0.1
    """
    return round(1.0 - (TORCH.momentum if momentum is None else momentum), DIGITS)


def _flat(value: Any) -> Numbers:
    """Return numbers as a float array of shape (C,): whatever holds them, and whatever 1s their shape has."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype.itemsize < torch.float32.itemsize else value
    value = value.numpy() if hasattr(value, "numpy") else getattr(value, "value", value)
    array = np.asarray(value)
    if array.size != max(array.shape, default=1):
        raise ShapeError(f"a layer's numbers lie along one axis, got shape {array.shape}")
    return array.reshape(-1).astype(array.dtype if array.dtype.kind == "f" and array.itemsize >= 4 else np.float32)


def _taken(state: Mapping[str, Any], names: Mapping[str, str], where: str) -> dict[str, Numbers]:
    """Return the arrays under our names; refuse names that are not known."""
    unknown = [name for name in state if name not in names]
    if unknown:
        raise ArgumentError(f"{where} holds {', '.join(names)}; got {', '.join(map(str, unknown))}")
    return {ours: _flat(state.get(theirs)) for theirs, ours in names.items() if ours}


NAMES_OF_TORCH = {
    "weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance", "num_batches_tracked": "",
    "running_stddev": "stddev", "renorm_mean": "renorm_mean", "renorm_stddev": "renorm_stddev",
}  # fmt: skip


def _read_torch(state: Any, config: dict[str, Any]) -> LayerState:
    if isinstance(state, nn.Module):
        if not isinstance(state, _BatchNorm):
            raise ArgumentError(f"a layer of batch normalization is needed, got {type(state).__name__}")
        found: Any = state
        own = {name: getattr(found, name) for name in ("eps", "momentum", "frozen", *OPTIONS) if hasattr(found, name)}
        state, config = found.state_dict(), {**own, **config}
    if not isinstance(state, Mapping):
        raise ArgumentError(f"a layer of torch, or its state_dict, is needed, got {type(state).__name__}")
    batches = state.get("num_batches_tracked")
    options = {name: value for name, value in config.items() if name in OPTIONS and value != OPTIONS[name]}
    estimator: Estimator = options.pop("running_variance", TORCH.running_variance)
    taken: Any = _taken(state, NAMES_OF_TORCH, "a layer's state_dict")
    eps, momentum = config.get("eps", TORCH.epsilon), config.get("momentum", TORCH.momentum)
    kept: Any = {"batches": int(batches or 0), "frozen": config.get("frozen", False), "options": options}
    return LayerState(**taken, eps=eps, momentum=momentum, estimator=estimator, **kept)


def _write_torch(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    if layer.gamma is None and layer.beta is not None:
        layer = replace(layer, gamma=np.ones_like(layer.beta))
    arrays = {theirs: getattr(layer, ours) for theirs, ours in NAMES_OF_TORCH.items() if ours}
    state = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items() if a is not None}
    state["num_batches_tracked"] = torch.tensor(layer.batches)
    features = {"num_features": layer.mean.size}
    affine = {"affine": layer.gamma is not None, "bias": layer.beta is not None}
    return state, {**features, "eps": layer.eps, "momentum": layer.momentum, **affine}


def _write_ours(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    state, config = _write_torch(layer)
    return state, {**config, "running_variance": layer.estimator, **layer.options}


def _of_keras_kind(config: dict[str, Any], convention: Convention) -> dict[str, Any]:
    """Return our ε and momentum of a config that writes `epsilon`, and a momentum that weighs the old."""
    momentum = rest(config.get("momentum", convention.momentum))
    return {"eps": config.get("epsilon", convention.epsilon), "momentum": momentum}


def _options_of_keras(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a Keras layer was asked for in the words of ours."""
    options: dict[str, Any] = {
        "activation": config.get("activation"),
        "sync": bool(config.get("synchronized")),
        "virtual_batch_size": config.get("virtual_batch_size"),
    }
    if config.get("renorm"):
        momentum = rest(config.get("renorm_momentum", KERAS.momentum))
        options["renorm"] = Renorm(**(config.get("renorm_clipping") or {}), momentum=momentum)
    return {name: value for name, value in options.items() if value != OPTIONS[name]}


def _read_keras(state: Any, config: dict[str, Any]) -> LayerState:
    if hasattr(state, "get_weights"):
        live = {name: getattr(state, name) for name in ("fused", "renorm_clipping") if hasattr(state, name)}
        state, config = state.get_weights(), {**state.get_config(), **live, **config}
    names = ["gamma"] * config.get("scale", True) + ["beta"] * config.get("center", True) + ["mean", "variance"]
    if config.get("renorm"):
        names += ["stddev", "renorm_mean", "renorm_stddev"]
    if not isinstance(state, list | tuple) or len(state) != len(names):
        got = f"{len(state)} arrays" if isinstance(state, list | tuple) else type(state).__name__
        raise ArgumentError(f"get_weights() of this layer holds {', '.join(names)} (`config` says which); got {got}")
    arrays: Any = {name: _flat(value) for name, value in zip(names, state, strict=True)}
    estimator: Estimator = config.get("running_variance") or ("unbiased" if config.get("fused") else "biased")
    kept: Any = {**_of_keras_kind(config, KERAS), "options": _options_of_keras(config)}
    kept["frozen"] = not config.get("trainable", True)
    return LayerState(**arrays, **kept, estimator=estimator)


def _write_keras(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    found = [getattr(layer, name) for name in ARRAYS]
    affine = {"scale": layer.gamma is not None, "center": layer.beta is not None}
    config = {"axis": -1, "momentum": rest(layer.momentum), "epsilon": layer.eps, **affine}
    renorm: Renorm | None = layer.options.get("renorm")
    if renorm is not None:
        config |= {"renorm": True, "renorm_clipping": renorm.clipping or None, "renorm_momentum": rest(renorm.momentum)}
    return [a for a in found if a is not None], config


NAMES_OF_FLAX = {"scale": "gamma", "bias": "beta", "mean": "mean", "var": "variance"}


def _read_flax(state: Any, config: dict[str, Any]) -> LayerState:
    if isinstance(state, Mapping) and {"params", "batch_stats"} & set(state):  # Linen's two collections
        state = {**state.get("params", {}), **state.get("batch_stats", {})}
    elif not isinstance(state, Mapping):
        config = {name: getattr(state, name) for name in ("epsilon", "momentum") if hasattr(state, name)} | config
        state = {name: getattr(state, name, None) for name in NAMES_OF_FLAX}
    taken: Any = _taken(state, NAMES_OF_FLAX, "a Flax layer")
    return LayerState(**taken, **_of_keras_kind(config, FLAX), estimator=FLAX.running_variance)


def _flax_config(layer: LayerState) -> dict[str, Any]:
    affine = {"use_scale": layer.gamma is not None, "use_bias": layer.beta is not None}
    return {"axis": -1, "momentum": rest(layer.momentum), "epsilon": layer.eps, **affine}


def _write_nnx(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    state = {theirs: getattr(layer, ours) for theirs, ours in NAMES_OF_FLAX.items() if getattr(layer, ours) is not None}
    return state, {"num_features": layer.mean.size, **_flax_config(layer)}


def _write_linen(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    state, _ = _write_nnx(layer)
    params = {name: state[name] for name in ("scale", "bias") if name in state}
    return {"params": params, "batch_stats": {name: state[name] for name in ("mean", "var")}}, _flax_config(layer)


def _ending(found: Any, name: str) -> Any:
    """Return the entry of a name, or of one that ends in it: Haiku's have the path of the module ahead."""
    return next((value for key, value in found.items() if key == name or key.endswith(f"/{name}")), None)


def _read_haiku(state: Any, config: dict[str, Any]) -> LayerState:
    if not isinstance(state, Mapping) or not {"params", "state"} <= set(state):
        raise ArgumentError('a layer of Haiku is {"params": ..., "state": ...}, as its `init` returns them')
    mean, var = (_ending(state["state"], name) for name in ("mean_ema", "var_ema"))
    if mean is None or var is None:
        raise ArgumentError(f"the state of Haiku's layer holds mean_ema and var_ema, got {', '.join(state['state'])}")
    params = next((p for p in state["params"].values() if isinstance(p, Mapping)), state["params"])
    arrays: Any = [_flat(a) for a in (mean["average"], var["average"], params.get("scale"), params.get("offset"))]
    momentum, batches = rest(config.get("decay_rate", FLAX.momentum)), int(np.asarray(mean.get("counter", SETTLED)))
    kept: Any = {"eps": config.get("eps", FLAX.epsilon), "momentum": momentum}
    kept |= {"batches": batches, "averaged": batches} if batches < SETTLED else {}
    return LayerState(*arrays, estimator=FLAX.running_variance, **kept)


def _write_haiku(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    def shaped(values: Any) -> Any:
        return None if values is None else np.asarray(values)[None]  # (1, C), of inputs (N, C)

    def average(values: Any) -> dict[str, Any]:  # a count so high that nothing is left to be debiased
        return {"counter": np.int32(SETTLED), "hidden": shaped(values), "average": shaped(values)}

    params = {"scale": shaped(layer.gamma), "offset": shaped(layer.beta)}
    state = {"batch_norm/~/mean_ema": average(layer.mean), "batch_norm/~/var_ema": average(layer.variance)}
    config = {"create_scale": layer.gamma is not None, "create_offset": layer.beta is not None}
    config |= {"decay_rate": rest(layer.momentum), "eps": layer.eps}
    return {"params": {"batch_norm": {n: a for n, a in params.items() if a is not None}}, "state": state}, config


FRAMEWORKS = {
    "torch": Framework(_read_torch, _write_torch, TORCH, TORCHS),
    "batchnorm": Framework(_read_torch, _write_ours, TORCH, TORCHS | set(OPTIONS), renorm=True),
    "keras": Framework(_read_keras, _write_keras, KERAS, KERAS_LAYERS),
    "tf_keras": Framework(_read_keras, _write_keras, KERAS, KERAS_LAYERS, renorm=True),
    "nnx": Framework(_read_flax, _write_nnx, FLAX, FLAX_LAYERS),
    "linen": Framework(_read_flax, _write_linen, FLAX, FLAX_LAYERS),
    "haiku": Framework(_read_haiku, _write_haiku, FLAX, HAIKUS),  # whose conventions are Haiku's too
}
