"""Give a trained model the statistics of its data: precise batch normalization."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.lazy import LazyModuleMixin

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.surgery.places import Layers, Place, chosen, places
from batchnorm.surgery.population import (
    Population,
    Run,
    batches,
    first_of,
    listening,
    one_pass,
    over_ranks,
    progress,
    settle,
)  # fmt: skip
from batchnorm.surgery.report import Change, Left, Report, require_change
from batchnorm.torch.preserve import preserved

SETTLED = 8 * torch.finfo(torch.float32).eps  # of σ: what rounding moves


def measurable(model: nn.Module, layers: Layers | None) -> tuple[list[Place], list[Left]]:
    """Return the layers that have statistics to renew, and those that have not, or that are frozen."""
    found, left = list[Place](), list[Left]()
    for place in chosen(places(model, lambda module: isinstance(module, _BatchNorm)), layers):
        layer: Any = place.module
        if isinstance(layer, LazyModuleMixin):
            left.append(Left(place.name, "it does not know its features yet: run the model once"))
        elif layer.running_mean is None:
            left.append(Left(place.name, "it keeps no running statistics"))
        elif getattr(layer, "frozen", False):
            left.append(Left(place.name, "it is frozen"))
        elif model.training and not layer.training:
            left.append(Left(place.name, "it is in inference in a model that trains: taken for frozen"))
        else:
            found.append(place)
    return found, left


def measured(
    model: nn.Module,
    data: Any,
    found: list[Place],
    *,
    call: Run | None = None,
    max_samples: int | None = None,
    device: Any = None,
    autocast: Any = None,
    sequential: bool = False,
    group: Any = None,
    shown: bool = True,
    label: str = "recalibrate",
) -> tuple[list[Population], bool]:
    """Return what each layer sees over the data, and whether it has settled; leave the model as it is, to the bit."""
    if max_samples is not None and not (isinstance(max_samples, int) and max_samples > 0):
        raise ArgumentError(f"`max_samples` must be a number, at least 1, got {max_samples!r}")
    if sequential and isinstance(data, Iterator):
        raise ArgumentError(
            "sequential=True goes over the data several times, got an iterator, which is used up after one"
        )
    if device is None:
        device = next((p.device for p in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    total = len(data) if hasattr(data, "__len__") and max_samples is None and not isinstance(data, Tensor) else None
    populations: list[Population] = []
    with preserved(model):
        model.eval()
        for turn in range(len(found) + 1 if sequential else 1):
            before, populations = populations, [Population(place) for place in found]
            failure: Exception | None = None
            try:
                given, name = batches(data, device, max_samples), f"{label}, pass {turn + 1}" if sequential else label
                with progress(name, total, shown) as told, listening(populations, normalise_by_them=turn == 0):
                    seen = one_pass(model, given, call or first_of, autocast, told)
                for one in populations:
                    one.batches, one.samples = seen if one.moments is not None else (0, 0)
            except Exception as error:
                failure = error
            over_ranks(populations, failure, group)
            _require_data(populations)
            for one in populations:
                if one.moments is not None:
                    settle(one.layer, *one.statistics())
            if before and all(_same(a, b) for a, b in zip(before, populations, strict=True)):
                return populations, True
    return populations, not sequential


def _require_data(populations: list[Population]) -> None:
    if populations and not any(one.batches or one.skipped for one in populations):
        raise BatchNormError(
            "the data gave no batch that reaches a layer: statistics stay as they were (an iterator is used up after "
            "one pass, and a loader with drop_last=True gives none where there is less than one batch)"
        )


def _same(a: Population, b: Population) -> bool:
    if a.moments is None or b.moments is None:
        return a.moments is b.moments
    (mean, var), (new_mean, new_var) = a.statistics(), b.statistics()
    sigma = (new_var + a.layer.eps).sqrt()
    moved = torch.maximum((new_mean - mean).abs() / sigma, (new_var - var).abs() / sigma**2)
    return bool((moved <= SETTLED).all())


def drift(layer: Any, mean: Tensor, var: Tensor) -> dict[str, float]:
    """Return how far the running statistics were from these: in σ, and the divergence of normal distributions.

    KL(data ‖ running) = ½·(σ²/s² + (μ−m)²/s² − 1 − ln(σ²/s²)), the mean over features, with ε in both variances.
    """
    old_mean, old_var = layer.running_mean.double(), layer.running_var.double() + layer.eps
    new_var = var + layer.eps
    moved = (mean - old_mean).abs()
    ratio = new_var / old_var
    divergence = (ratio + moved**2 / old_var - 1 - ratio.log()) / 2
    in_sigma = moved / new_var.sqrt()
    largest = float(torch.maximum(ratio, 1 / ratio).max())
    return {"mean_off_sigma": float(in_sigma.max()), "variance_factor": largest, "kl": float(divergence.mean())}


def renew(one: Population, mean: Tensor, var: Tensor) -> Change:
    """Write the statistics of a population into its layer; return what that changes."""
    layer = one.layer
    numbers = {"values": one.count(), **drift(layer, mean, var)}
    settle(layer, mean, var)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.clamp_(min=one.batches)
    return Change(one.place.name, "", numbers=numbers)


def notes_on(populations: list[Population]) -> tuple[list[Left], list[str]]:
    """Return the layers that saw nothing, and what was skipped."""
    unseen = [
        Left(one.place.name, "no batch with finite values came to it") for one in populations if one.moments is None
    ]
    skipped = {one.skipped for one in populations if one.skipped}
    return unseen, [f"{max(skipped)} batches held inf or NaN, and were left out"] if skipped else []


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

    In one pass a layer that is normalised ahead of another is normalised by what it has seen so far, this batch
    included: exact for every layer that none comes before, and close for the others. `sequential=True` goes over the
    data until nothing moves any more, once for each layer in a chain and once more at most: then the statistics are
    those of inference, for every layer and any split of the data (a layer that is called twice within itself may go on
    moving: a note says so).

    Everything runs in inference, so that dropout is off, and without gradients. A layer that is frozen keeps its
    statistics: one of `batchnorm.torch` that is frozen, and one in inference in a model that is in training. If the
    data fail, or nothing comes, or somebody presses Ctrl-C, the model is as before, to the bit, with its modes,
    gradients and random numbers.

    Args:
        model: Changed in place, in its running statistics alone; `num_batches_tracked` is at least the batches seen.
        data: Batches, as a DataLoader gives them; a tensor is one.
        call: `(model, batch) -> Any`, how to run one. Else of a tuple or list the first, and a dict as keyword
            arguments.
        layers: Which: names with wildcards, modules, or a predicate `(name, module) -> bool`; all if None.
        max_samples: Stop after so many; the last batch is cut.
        device: Where batches go; that of the model's parameters if None.
        autocast: A dtype, or True for the device's own; off if None.
        sequential: Go on until nothing moves.
        group: Whose processes' data are taken together; all if None, where torch.distributed runs: each must call.
        progress: Show a bar on a terminal.
        allow_empty: Whether it is right to find no layer.

    Returns:
        The report: for each layer how many values a feature was seen with, and how far its statistics were off: the
        mean in σ and the variance as a factor, of the worst feature, and the KL divergence, the mean over features.

    Raises:
        BatchNormError: if there is no layer to recalibrate, or no data.
        ArgumentError: for an option out of range.

    Sources: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3; Chan, Golub and LeVeque 1979.

    Differs:
        torch.optim.swa_utils.update_bn resets frozen layers, trains with dropout on, averages the variances within
        batches with the same weight each, and leaves mean 0 and variance 1 where the data are used up.

    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout())
    >>> report = recalibrate(model, [torch.zeros(3, 1), torch.full((1, 1), 8.0)])
    >>> model[0].running_mean.item(), model[0].running_var.item()  # 0, 0, 0 and 8: unbiased, as torch remembers it
    (2.0, 16.0)
    """
    found, left = measurable(model, layers)
    if not found:
        return require_change(Report("recalibrate", model, [], left), allow_empty)
    populations, settled = measured(
        model, data, found, call=call, max_samples=max_samples, device=device, autocast=autocast, sequential=sequential,
        group=group, shown=progress,
    )  # fmt: skip
    unseen, notes = notes_on(populations)
    changes = [renew(one, *one.statistics()) for one in populations if one.moments is not None]
    if not settled:
        notes.append("the statistics were still moving in the last pass: is a layer called more than once?")
    numbers = {"samples": max(one.samples for one in populations), "batches": max(one.batches for one in populations)}
    return require_change(Report("recalibrate", model, changes, [*left, *unseen], numbers, notes), allow_empty)
