"""Give a trained model the statistics of its data: precise batch normalization."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from batchnorm.models.preserve import all_or_none
from batchnorm.surgery.passes import Reading, Run, measured
from batchnorm.surgery.places import Layers, Place, chosen, epsilon, is_frozen_class, is_normalization, places
from batchnorm.surgery.population import Population, settle
from batchnorm.surgery.report import Change, Left, Report, require_change

LEAST = 2  # values per feature: of one there is no variance


def measurable(model: nn.Module, layers: Layers | None) -> tuple[list[Place], list[Left]]:
    """Return the layers that have statistics to renew, and those that have not, or that are frozen."""
    layers_there = places(model, is_normalization)
    found, left = list[Place](), list[Left]()
    others = [module for module in model.modules() if not any(module.children()) and not is_normalization(module)]
    trains = any(module.training for module in others) if others else model.training
    for place in chosen(layers_there, layers):
        layer: Any = place.module
        if isinstance(layer, LazyModuleMixin):
            left.append(Left(place.name, "it does not know its features yet: run the model once"))
        elif layer.running_mean is None:
            left.append(Left(place.name, "it keeps no running statistics"))
        elif is_frozen_class(layer):
            if layers is None:
                left.append(Left(place.name, f"a {type(layer).__name__} is frozen for good, unless `layers` names it"))
            else:
                found.append(place)
        elif getattr(layer, "frozen", False):
            left.append(Left(place.name, "it is frozen"))
        elif trains and not layer.training:
            left.append(Left(place.name, "it is in inference in a model that trains: taken for frozen"))
        else:
            found.append(place)
    return found, left


def drift(layer: Any, mean: Tensor, var: Tensor) -> dict[str, float]:
    """Return how far the running statistics were from these: in σ, and the divergence of normal distributions.

    KL(data ‖ running) = ½·(σ²/s² + (μ−m)²/s² − 1 − ln(σ²/s²)), the mean over features, with ε in both variances.
    """
    old_mean, old_var = layer.running_mean.double(), layer.running_var.double() + epsilon(layer)
    new_var = var + epsilon(layer)
    moved = (mean - old_mean).abs()
    ratio = new_var / old_var
    divergence = (ratio + moved**2 / old_var - 1 - ratio.log()) / 2
    in_sigma = moved / new_var.sqrt()
    worst = float(ratio.flatten()[ratio.log().abs().argmax()])
    return {"mean_off_sigma": float(in_sigma.max()), "variance_factor": worst, "kl": float(divergence.mean())}


def renew(one: Population, mean: Tensor, var: Tensor) -> Change:
    """Write the statistics of a population into its layer; return what that changes."""
    layer = one.layer
    numbers = {"values": one.count(), **drift(layer, mean, var)}
    settle(layer, mean, var)
    if getattr(layer, "num_batches_tracked", None) is not None:
        layer.num_batches_tracked.clamp_(min=one.batches)
    return Change(one.place.name, "", numbers=numbers)


def enough(populations: list[Population], least: int = LEAST) -> tuple[list[Population], list[Left]]:
    """Return those that have seen so many values per feature, and why the others have not."""
    left = list[Left]()
    for one in populations:
        if not one.calls:
            left.append(Left(one.place.name, "nothing called it, or not by calling it"))
        elif one.moments is None:
            left.append(Left(one.place.name, "no batch with finite values came to it"))
        elif one.count() < least:
            left.append(Left(one.place.name, f"{one.count():g} values per feature came to it, and {least} are needed"))
    few = {why.where for why in left}
    return [one for one in populations if one.place.name not in few], left


def samples_and_batches(populations: list[Population]) -> dict[str, float]:
    """Return the most that a layer has seen."""
    return {name: max(getattr(one, name) for one in populations) for name in ("samples", "batches")}


def recalibrate(
    model: nn.Module,
    data: Any,
    *,
    call: Run | None = None,
    layers: Layers | None = None,
    max_samples: int | None = None,
    device: Any = None,
    autocast: Any = None,
    sequential: bool = False,
    group: Any = None,
    progress: bool = True,
    allow_empty: bool = False,
) -> Report:
    """Replace the running statistics of `model` by those of the data, pooled over all of its batches.

    μ and σ² of a layer's inputs, as if the data were one batch: the triples (N, μ, m2) of the batches are merged in
    float64 by Chan's rule, so that the variance between batches counts, and a batch counts by its size. For averaged
    weights (SWA, EMA), before fine-tuning on other data, before export.

    What a layer sees depends on the layers before it, and these have to be settled first. With each pass over the data
    one more is, in the order in which they are called; the others normalise by what they have seen so far, and by the
    pass before for the rest. There are two passes, which settle the first two layers; a note says of how many others
    they do not, and how far the second has moved these. An iterator gives one pass, which settles the first layer.
    `sequential=True` makes a pass for each layer, and one to see that nothing moves, 54 for a ResNet-50: then the
    statistics are those of inference, for every layer and any split of the data (a layer that is called twice within
    itself may go on moving: a note says so). All passes see the same data, as far as the random numbers of torch, NumPy
    and Python, and of the loader, decide; a dataset with a generator of its own draws anew.

    Everything runs in inference, so that dropout is off, and without gradients. A layer that is frozen keeps its
    statistics: one of `batchnorm.torch` that is frozen, one in inference in a model that is in training, and a
    FrozenBatchNorm2d unless `layers` names it. If the data fail, or nothing comes, or somebody presses Ctrl-C, the
    model is as before, to the bit, with its modes, gradients and random numbers.

    Args:
        model: Changed in place, in its running statistics alone; `num_batches_tracked` is at least the batches seen.
        data: Batches, as a DataLoader gives them; a tensor is one. A batch with inf or NaN is left out, and counted.
        call: `(model, batch) -> Any`, how to run one. Else of a tuple or list the first, and a mapping as keyword
            arguments.
        layers: Which: names with wildcards, modules, classes, or a predicate `(name, module) -> bool`; all if None.
        max_samples: Stop after so many; the last batch is cut.
        device: Where batches go; that of the model's parameters if None.
        autocast: A dtype, or True for the device's own; off if None.
        sequential: Settle layer by layer.
        group: Whose processes' data are taken together; all if None, where torch.distributed runs: each must call.
        progress: Show a bar on a terminal.
        allow_empty: Whether it is right to find no layer.

    Returns:
        The report: for each layer how many values a feature was seen with, and how far its statistics were off: the
        mean in σ, the factor by which the variance has changed, both of the worst feature, and the KL divergence, the
        mean over features. A layer that saw less than 2 values per feature is left as it is.

    Raises:
        BatchNormError: if there is no layer to recalibrate, no data, or a dtype that cannot hold them.
        ArgumentError: for an option out of range.

    Sources: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3; Chan, Golub and LeVeque 1979.

    Differs:
        torch.optim.swa_utils.update_bn resets frozen layers, trains with dropout on, averages the variances within
        batches with the same weight each, and leaves mean 0 and variance 1 where the data are used up.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout())
    >>> report = recalibrate(model, [torch.zeros(3, 1), torch.full((1, 1), 8.0)])
    >>> model[0].running_mean.item(), model[0].running_var.item()  # 0, 0, 0 and 8: unbiased, as torch remembers it
    (2.0, 16.0)
    """
    found, left = measurable(model, layers)
    how = Reading(call, max_samples, device, autocast, progress)
    if not found:
        return require_change(Report("recalibrate", model, [], left), allow_empty)
    populations, notes = measured(model, data, found, how, sequential=sequential, group=group, label="recalibrate")
    ready, few = enough(populations)
    with all_or_none(one.layer for one in ready):
        changes = [renew(one, *one.statistics()) for one in ready]
    numbers = samples_and_batches(populations)
    return require_change(Report("recalibrate", model, changes, [*left, *few], numbers, notes), allow_empty)
