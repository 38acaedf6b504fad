"""Move the state of a layer from one framework to another: names, shapes, order, and what the numbers mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from batchnorm.conventions import Estimator
from batchnorm.errors import ArgumentError, ShapeError

Numbers = NDArray[Any] | None
DIGITS = 12  # of a momentum


@dataclass(frozen=True)
class LayerState:
    """A layer without a framework: per-feature arrays of shape (C,), `momentum` the weight of the NEW observation."""

    mean: Numbers
    variance: Numbers
    gamma: Numbers = None
    beta: Numbers = None
    eps: float = 1e-5
    momentum: float = 0.1
    estimator: Estimator = "unbiased"
    batches: int = 0
    stddev: Numbers = None
    renorm_mean: Numbers = None
    renorm_stddev: Numbers = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Transferred:
    """A state in the form of the target.

    Attributes:
        state: What the target loads: see `transfer`.
        config: Arguments to make the target's layer with.
        notes: What the target cannot hold, or means otherwise.
    """

    state: Any
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list[str])


class Framework(NamedTuple):
    """How a framework writes a layer down."""

    read: Callable[[Any, dict[str, Any]], LayerState]
    write: Callable[[LayerState], tuple[Any, dict[str, Any]]]
    estimator: Estimator


def rest(momentum: float) -> float:
    """Return 1 − momentum, as it would be written down.

    >>> rest(0.9)
    0.1
    """
    return round(1.0 - momentum, DIGITS)


def _flat(value: Any) -> Numbers:
    """Return numbers as a float array of shape (C,): whatever holds them, and whatever 1s their shape has."""
    if value is None:
        return None
    value = value.detach().cpu() if isinstance(value, torch.Tensor) else value
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


TORCH = {
    "weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance", "num_batches_tracked": "",
    "running_stddev": "stddev", "renorm_mean": "renorm_mean", "renorm_stddev": "renorm_stddev",
}  # fmt: skip


def _read_torch(state: Any, config: dict[str, Any]) -> LayerState:
    if isinstance(state, nn.Module):
        found: Any = state
        own = {name: getattr(found, name) for name in ("eps", "momentum", "running_variance") if hasattr(found, name)}
        state, config = found.state_dict(), {**own, **config}
    batches = state.get("num_batches_tracked")
    momentum = config.get("momentum", 0.1)
    note = (
        () if momentum is not None else ("momentum=None averages all batches, which the target does not: 0.1 instead",)
    )
    return LayerState(
        **_taken(state, TORCH, "a layer's state_dict"),  # pyright: ignore[reportArgumentType]
        eps=config.get("eps", 1e-5), momentum=0.1 if momentum is None else momentum, batches=int(batches or 0),
        estimator=config.get("running_variance", "unbiased"), notes=note,
    )  # fmt: skip


def _write_torch(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    if layer.gamma is None and layer.beta is not None:  # β alone is not to be had
        layer = replace(layer, gamma=np.ones_like(layer.beta))
    arrays = {theirs: getattr(layer, ours) for theirs, ours in TORCH.items() if ours}
    state = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items() if a is not None}
    state["num_batches_tracked"] = torch.tensor(layer.batches)
    features = {"num_features": 0 if layer.mean is None else layer.mean.size}
    affine = {"affine": layer.gamma is not None, "bias": layer.beta is not None}
    return state, {**features, "eps": layer.eps, "momentum": layer.momentum, **affine}


def _write_ours(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    state, config = _write_torch(layer)
    return state, {**config, "running_variance": layer.estimator}


def _read_keras(state: Any, config: dict[str, Any]) -> LayerState:
    if hasattr(state, "get_weights"):
        state, config = state.get_weights(), {**state.get_config(), **config}
    names = ["gamma"] * config.get("scale", True) + ["beta"] * config.get("center", True) + ["mean", "variance"]
    if config.get("renorm"):
        names += ["stddev", "renorm_mean", "renorm_stddev"]
    if len(state) != len(names):
        raise ArgumentError(
            f"get_weights() of this layer holds {', '.join(names)} (`config` says which); got {len(state)} arrays"
        )
    arrays: Any = {name: _flat(value) for name, value in zip(names, state, strict=True)}
    estimator: Estimator = config.get("running_variance") or ("unbiased" if config.get("fused") else "biased")
    return LayerState(
        **arrays, eps=config.get("epsilon", 1e-3), momentum=rest(config.get("momentum", 0.99)), estimator=estimator
    )


def _write_keras(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    names = ("gamma", "beta", "mean", "variance", "stddev", "renorm_mean", "renorm_stddev")
    found = [getattr(layer, name) for name in names]
    affine = {"scale": layer.gamma is not None, "center": layer.beta is not None}
    renorm = {"renorm": True} if layer.renorm_mean is not None else {}
    config = {"axis": -1, "momentum": rest(layer.momentum), "epsilon": layer.eps, **affine, **renorm}
    return [a for a in found if a is not None], config


FLAX = {"scale": "gamma", "bias": "beta", "mean": "mean", "var": "variance"}


def _read_flax(state: Any, config: dict[str, Any]) -> LayerState:
    if isinstance(state, Mapping) and {"params", "batch_stats"} & set(state):  # Linen's two collections
        state = {**state.get("params", {}), **state.get("batch_stats", {})}
    elif not isinstance(state, Mapping):
        config = {name: getattr(state, name) for name in ("epsilon", "momentum") if hasattr(state, name)} | config
        state = {name: getattr(state, name, None) for name in FLAX}
    taken: Any = _taken(state, FLAX, "a Flax layer")
    return LayerState(
        **taken, eps=config.get("epsilon", 1e-5), momentum=rest(config.get("momentum", 0.99)), estimator="biased"
    )


def _flax_config(layer: LayerState) -> dict[str, Any]:
    affine = {"use_scale": layer.gamma is not None, "use_bias": layer.beta is not None}
    return {"axis": -1, "momentum": rest(layer.momentum), "epsilon": layer.eps, **affine}


def _write_nnx(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    state = {theirs: getattr(layer, ours) for theirs, ours in FLAX.items() if getattr(layer, ours) is not None}
    return state, {"num_features": 0 if layer.mean is None else layer.mean.size, **_flax_config(layer)}


def _write_linen(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    state, _ = _write_nnx(layer)
    params = {name: state[name] for name in ("scale", "bias") if name in state}
    return {"params": params, "batch_stats": {name: state[name] for name in ("mean", "var")}}, _flax_config(layer)


def _read_haiku(state: Any, config: dict[str, Any]) -> LayerState:
    params, averages = state.get("params", {}), state["state"]
    mean, variance = (_flat(averages[name]["average"]) for name in ("mean_ema", "var_ema"))
    gamma, beta = _flat(params.get("scale")), _flat(params.get("offset"))
    momentum = rest(config.get("decay_rate", 0.99))
    batches = int(np.asarray(averages["mean_ema"].get("counter", 0)))
    return LayerState(mean, variance, gamma, beta, config.get("eps", 1e-5), momentum, "biased", batches)


def _write_haiku(layer: LayerState) -> tuple[Any, dict[str, Any]]:
    def average(values: Any) -> dict[str, Any]:  # a count so high that nothing is left to be debiased
        kept = np.asarray(values)
        return {"counter": np.int32(2**30), "hidden": kept, "average": kept}

    params = {"scale": layer.gamma, "offset": layer.beta}
    state = {"mean_ema": average(layer.mean), "var_ema": average(layer.variance)}
    config = {"create_scale": layer.gamma is not None, "create_offset": layer.beta is not None}
    config |= {"decay_rate": rest(layer.momentum), "eps": layer.eps}
    return {"params": {n: a for n, a in params.items() if a is not None}, "state": state}, config


FRAMEWORKS = {
    "torch": Framework(_read_torch, _write_torch, "unbiased"),
    "batchnorm": Framework(_read_torch, _write_ours, "unbiased"),
    "keras": Framework(_read_keras, _write_keras, "biased"),
    "tf_keras": Framework(_read_keras, _write_keras, "biased"),
    "nnx": Framework(_read_flax, _write_nnx, "biased"),
    "linen": Framework(_read_flax, _write_linen, "biased"),
    "haiku": Framework(_read_haiku, _write_haiku, "biased"),
}
WITH_RENORM = ("batchnorm", "tf_keras")


def transfer(
    state: Any, source: str, target: str, *, config: Mapping[str, Any] | None = None, count: float | None = None
) -> Transferred:
    """Return the state of a batch normalization layer in the form of another framework.

    | framework | state | config, with the momentum it means |
    |---|---|---|
    | "torch", "batchnorm" | a layer, or its `state_dict()` | eps, momentum: s ← s + momentum·(batch − s) |
    | "keras", "tf_keras" | a layer, or its `get_weights()` | epsilon, momentum: s ← momentum·s + (1 − momentum)·batch |
    | "nnx" | a layer, or {"scale", "bias", "mean", "var"} | epsilon, momentum as Keras |
    | "linen" | {"params": …, "batch_stats": …} | epsilon, momentum as Keras |
    | "haiku" | {"params": …, "state": {"mean_ema": …, "var_ema": …}} | eps, decay_rate as Keras' momentum |

    Shapes with 1s around the features, as of ghost batches in tf.keras or of Haiku, become (C,). Missing γ or β are
    told by the config. Features lie along axis 1 in torch and along the last axis elsewhere: it is the inputs that are
    transposed. Inference gives the same. torch remembers the unbiased variance and the others the biased one: training
    goes on by the target's, unless that is "batchnorm", whose config tells the layer to go on as the source has begun.
    With `count`, the values per feature of a training batch, the running variance is made what the target would have
    remembered, times (N−1)/N or N/(N−1).

    Args:
        state: As in the table.
        source: Where it comes from.
        target: Where it goes.
        config: Arguments that the source's layer was made with, in its own words; a layer tells them itself.
        count: N, to rescale the running variance by. None: it stays, so that inference does, and a note says so.

    Returns:
        What the target loads: tensors for `load_state_dict`, a list for `set_weights`, a dict for the others, with the
        arguments to make its layer, and notes.

    Raises:
        ArgumentError: for a framework that is not known, or a state that is not of its form.
        ShapeError: if an array has more than one axis of features.

    >>> layer = nn.BatchNorm1d(3, momentum=0.25)
    >>> found = transfer(layer, "torch", "keras")
    >>> [w.shape for w in found.state], found.config["momentum"], found.config["epsilon"]
    ([(3,), (3,), (3,), (3,)], 0.75, 1e-05)
    """
    for name in (source, target):
        if name not in FRAMEWORKS:
            raise ArgumentError(f"`source` and `target` must be of {', '.join(FRAMEWORKS)}, got {name!r}")
    layer = FRAMEWORKS[source].read(state, dict(config or {}))
    notes, wanted = [*layer.notes], FRAMEWORKS[target].estimator
    if target != "batchnorm" and layer.variance is not None and layer.estimator != wanted:
        if count is None:
            notes.append(
                f"the running variance is the {layer.estimator} one, and {target} remembers the {wanted}: give `count`"
            )
        elif count > 1:
            factor = (count - 1) / count if wanted == "biased" else count / (count - 1)
            layer = replace(layer, variance=layer.variance * layer.variance.dtype.type(factor))
    if layer.renorm_mean is not None and target not in WITH_RENORM:
        notes.append(f"{target} has no batch renormalization: its state is dropped")
        layer = replace(layer, stddev=None, renorm_mean=None, renorm_stddev=None)
    made, arguments = FRAMEWORKS[target].write(layer)
    return Transferred(made, arguments, notes)
