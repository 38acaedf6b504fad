"""Normalise by the statistics of other data for a while: adaptation to a shifted domain at test time."""

from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from torch import Tensor, nn

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.models.preserve import Buffers, all_or_none, bring_back
from batchnorm.surgery.passes import Reading, Run, measured
from batchnorm.surgery.places import Layers
from batchnorm.surgery.population import Population
from batchnorm.surgery.recalibrate import enough, measurable, renew, samples_and_batches
from batchnorm.surgery.report import Report, require_change


@dataclass(frozen=True)
class Adapted(Report):
    """What was adapted, and the way back: `undo()`, or the end of a `with` block."""

    before: Buffers = field(default_factory=list[Any], repr=False)

    def undo(self) -> nn.Module:
        """Bring the statistics back, to the bit; return the model. A second time it does nothing.

        Of adaptations within one another the last comes first.
        """
        bring_back(self.before)
        self.before.clear()
        return self.model

    def __enter__(self) -> nn.Module:
        return self.model

    def __exit__(self, *_: object) -> None:
        self.undo()


def adapt(
    model: nn.Module,
    data: Any,
    mode: Literal["replace", "mix"] = "replace",
    prior: float = 16.0,
    *,
    min_count: int = 2,
    layers: Layers | None = None,
    call: Run | None = None,
    allow_empty: bool = False,
    max_samples: int | None = None,
    device: Any = None,
    autocast: Any = None,
    sequential: bool = False,
    group: Any = None,
    progress: bool = True,
) -> Adapted:
    """Normalise by the statistics of `data`, that a model meets away from home; undo it when it is back.

    "replace" takes the statistics of the data. "mix" counts those that the model was trained with as N = `prior`
    samples beside the n of the data: s ← (N·s + n·t)/(N + n), for the mean and the variance each.

    Args:
        model: Changed in place, in its running statistics alone; nothing is learned, γ and β stay.
        data: Batches without labels, as for `recalibrate`; a tensor is one batch.
        mode: "replace" for much data, "mix" for little.
        prior: N ≥ 0 in "mix": 16 suits some dozens of samples, more trusts the training more.
        min_count: The least values per feature that a layer must have seen.
        layers: Which, as for `recalibrate`.
        call: How to run a batch, as for `recalibrate`; and so are the rest.
        allow_empty: Whether it is right to find no layer.
        max_samples: Stop after so many.
        device: Where batches go.
        autocast: A dtype, or True.
        sequential: Settle layer by layer.
        group: Whose processes' data are taken together.
        progress: Show a bar on a terminal.

    Returns:
        The report, which can `undo()`, and as a context manager does so at the end of its block.

    Raises:
        ArgumentError: for an option out of range.
        BatchNormError: if a layer has seen fewer values per feature than `min_count`; nothing has changed then.

    Sources: Li, Wang, Shi, Liu and Hou 2016 (AdaBN) for "replace"; Schneider et al. 2020, "Improving robustness
    against common corruptions by covariate shift adaptation", eq. 4, for "mix".

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(1)).eval()
    >>> with adapt(model, torch.tensor([[4.0], [6.0]]), mode="mix", prior=2):
    ...     model[0].running_mean.item()  # (2·0 + 2·5)/(2 + 2)
    2.5
    >>> model[0].running_mean.item()
    0.0
    """
    if mode not in ("replace", "mix"):
        raise ArgumentError(f'`mode` must be "replace" or "mix", got {mode!r}')
    if not (isinstance(prior, Real) and prior >= 0):
        raise ArgumentError(f"`prior` counts samples, and must not be negative, got {prior!r}")
    if min_count < 1:
        raise ArgumentError(f"`min_count` must be at least 1, got {min_count}")
    found, left = measurable(model, layers)
    how = Reading(call, max_samples, device, autocast, progress)
    if not found:
        require_change(Report("adapt", model, [], left), allow_empty)
        return Adapted("adapt", model, [], left)
    populations, notes = measured(model, data, found, how, sequential=sequential, group=group, label="adapt")
    ready, few = enough(populations, min_count)
    if not ready or any(one.calls for one in populations if one not in ready):
        raise BatchNormError(
            f"at least {min_count} values per feature are needed (`min_count`): "
            + "; ".join(f"{one.where}: {one.why}" for one in few)
        )
    with all_or_none(one.layer for one in ready) as before:
        changes = [renew(one, *_blend(one, mode, prior)) for one in ready]
    return Adapted("adapt", model, changes, [*left, *few], samples_and_batches(ready), notes, before)


def _blend(one: Population, mode: str, prior: float) -> tuple[Tensor, Tensor]:
    mean, var = one.statistics()
    if mode == "replace":
        return mean, var
    share = one.samples / (prior + one.samples)
    old_mean, old_var = one.layer.running_mean.double(), one.layer.running_var.double()
    return old_mean + share * (mean - old_mean), old_var + share * (var - old_var)
