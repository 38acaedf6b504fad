"""Move the state of a layer from one framework to another."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from torch.utils._pytree import tree_map

from batchnorm.conventions import TORCH
from batchnorm.errors import ArgumentError
from batchnorm.renorm import RENORM_ESTIMATOR
from batchnorm.surgery.frameworks import FRAMEWORKS, LayerState


def _shape(leaf: Any) -> Any:
    return str(tuple(leaf.shape)) if hasattr(leaf, "shape") else leaf


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

    def __str__(self) -> str:
        """Return what `print` shows: the shapes in place of the numbers."""
        shapes: Any = tree_map(_shape, self.state)
        config = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        return "\n".join([f"state: {shapes}", f"config: {config}", *self.notes])


UNSETTLED = 1e-4  # of an average: the share of its start that makes a difference


def _options_kept(layer: LayerState, target: str) -> tuple[LayerState, list[str]]:
    """Return a layer without the options that the target does not have, and a note on each."""
    if target == "batchnorm":
        return layer, []
    kept = {n: v for n, v in layer.options.items() if n == "renorm" and FRAMEWORKS[target].renorm}
    notes = [f"{n}={v!r} is no part of {target}'s layer" for n, v in layer.options.items() if n not in kept]
    if "renorm" not in kept:
        layer = replace(layer, stddev=None, renorm_mean=None, renorm_stddev=None)
    if layer.momentum is None and target != "torch":
        notes.append(f"momentum=None averages all batches, as the target does not: {TORCH.momentum} instead")
    return replace(layer, options=kept), notes


def _fitted(layer: LayerState, target: str, count: float | None) -> tuple[LayerState, list[str]]:
    """Return what of a layer the target can hold, with its estimate of the variance, and notes on the rest."""
    layer, notes = _options_kept(layer, target)
    wanted = FRAMEWORKS[target].convention.running_variance if layer.renorm_mean is None else RENORM_ESTIMATOR
    if layer.estimator != wanted and count is not None:
        factor = (count - 1) / count if wanted == "biased" else count / (count - 1)
        layer = replace(layer, variance=layer.variance * layer.variance.dtype.type(factor), estimator=wanted)
    elif layer.estimator != wanted and target != "batchnorm":
        notes.append(
            f"the running variance is the {layer.estimator} one, and {target} remembers the {wanted}: give `count`"
        )
    if layer.frozen:
        notes.append("the layer is frozen, which its state does not hold: freeze it again")
    if target in ("torch", "batchnorm") and layer.gamma is None and layer.beta is not None:
        notes.append(f"{target}'s layer has no β alone: it gets γ=1, which is learned too unless you freeze it")
    if layer.momentum is not None and (1 - layer.momentum) ** layer.averaged > UNSETTLED:
        notes.append(
            f"after {layer.averaged} batches Haiku still weighs new ones more than decay_rate says; from here on they "
            "are weighed by it"
        )
    return layer, notes


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
    | "haiku" | {"params": …, "state": …}, of inputs (N, C) | eps, decay_rate as Keras' momentum |

    Shapes with 1s around the features, as of ghost batches in tf.keras or of Haiku, become (C,). Missing γ or β are
    told by the config. Features lie along axis 1 in torch and along the last axis elsewhere: it is the inputs that are
    transposed. Inference gives the same. torch remembers the unbiased variance and the others the biased one: training
    goes on by the target's. With `count`, the values per feature of a training batch, the running variance is made what
    the target would have remembered, times (N−1)/N or N/(N−1). Without, "batchnorm" is told by its config to go on as
    the source has begun, and of the others a note says that they do not. (For images tf.keras fuses the layer and
    remembers the unbiased variance: one that was built tells so; to one give no `count` from torch.)

    Args:
        state: As in the table.
        source: Where it comes from.
        target: Where it goes.
        config: Arguments that the source's layer was made with, in its own words; a layer tells them itself.
        count: N, to rescale the running variance by. None: it stays, and so does inference.

    Returns:
        What the target loads: tensors for `load_state_dict`, a list for `set_weights`, a dict for the others, with the
        arguments to make its layer, and notes.

    Raises:
        ArgumentError: for a framework that is not known, or a state that is not of its form.
        ShapeError: if an array has more than one axis of features.

    >>> import torch
    >>> layer = torch.nn.BatchNorm1d(3, momentum=0.25)
    >>> found = transfer(layer, "torch", "keras")
    >>> [w.shape for w in found.state], found.config["momentum"], found.config["epsilon"]
    ([(3,), (3,), (3,), (3,)], 0.75, 1e-05)
    """
    for name in (source, target):
        if name not in FRAMEWORKS:
            raise ArgumentError(f"`source` and `target` must be of {', '.join(FRAMEWORKS)}, got {name!r}")
    if count is not None and not (isinstance(count, Real) and count > 1):
        raise ArgumentError(f"`count` must be more than 1 value per feature, got {count!r}")
    unknown = [name for name in config or () if name not in FRAMEWORKS[source].words]
    if unknown:
        raise ArgumentError(f"`config` holds arguments of {source}'s layer, got {', '.join(map(repr, unknown))}")
    layer = FRAMEWORKS[source].read(state, dict(config or {}))
    layer, notes = _fitted(layer, target, count)
    made, arguments = FRAMEWORKS[target].write(layer)
    return Transferred(made, arguments, notes)
