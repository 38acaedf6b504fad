"""Does the noise of batch statistics regularise, and does it shrink as the batch grows?"""

import math
import statistics
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from batchnorm.study import pictures
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, known
from batchnorm.study.training import Rows, Spec, losses, predict
from batchnorm.torch import BatchNorm, transaction

LAW = -1.0
NEAR = 0.25  # of the slope to −1: beyond it the nearer law is 1/√m, or 1/m^(3/2)
SMALL = 4
SIZES = (2, 4, 8, 16, 32, 64, 128)
DRAWN = 1024  # rows of a forward, a multiple of every size
DRAWS = 4
LEAST = 1e-12  # a loss, so that ratios exist where one vanishes
MOST_ROWS = 5000  # that statistics are recalibrated on
PROBE = f"{__name__}:probe"
QUANTITIES = {"mean": "batch mean", "variance": "batch variance", "outputs": "outputs of the network"}


def virtual_batches(study: Study) -> list[int]:
    """Return the sizes that a batch is split into; none where it does not hold two virtual batches of four."""
    whole = study.settings.batch_size
    others = () if study.settings.quick else (2, whole // 4, whole // 2)
    return sorted({s for s in (SMALL, *others) if 2 <= s <= whole // 2}) if whole >= 2 * SMALL else []


def _specs(study: Study, size: int | None) -> list[Spec]:
    return study.sweep("before", [study.moderate_rate], virtual_batch_size=size, probe=PROBE)


def runs(study: Study) -> list[Spec]:
    """One run for each size of virtual batches and seed, the whole batch among them."""
    sizes = virtual_batches(study)
    return [s for size in (None, *sizes) for s in _specs(study, size)] if sizes else []


def probe(network: nn.Module, rows: Rows, step: int) -> list[dict[str, Any]]:
    """Look into the trained network: its losses, and the noise of its statistics if it had whole batches."""
    spec = rows.specs[0]
    if step < spec.steps:
        return [{} for _ in rows.specs]
    x, y = rows.take(np.stack([part.train[:MOST_ROWS] for part in rows.splits]))
    x_test, y_test = rows.part("test")
    fitted, tested = recalibrated(network, x, x, x_test)
    found = {
        "train": losses(fitted, y, rows.data),
        "recalibrated": losses(tested, y_test, rows.data),
        "running": losses(predict(network, x_test), y_test, rows.data),
    }
    seen: list[dict[str, Any]] = [{name: loss[i].item() for name, loss in found.items()} for i in range(len(y))]
    return seen if spec.virtual_batch_size else [s | n for s, n in zip(seen, noise(network, rows), strict=True)]


@contextmanager
def _training(network: nn.Module, size: int | None) -> Generator[list[BatchNorm]]:
    """Normalise by (virtual) batches and remember the last one only; take all of it back afterwards."""
    layers = [m for m in network.modules() if isinstance(m, BatchNorm)]
    before = [(layer.training, layer.virtual_batch_size, layer.momentum) for layer in layers]
    try:
        with transaction(network) as untouched, torch.no_grad():
            for layer in layers:
                layer.train()
                layer.virtual_batch_size, layer.momentum = size, 1.0
            yield layers
            untouched.rollback()
    finally:
        for layer, (mode, layer.virtual_batch_size, layer.momentum) in zip(layers, before, strict=True):
            layer.train(mode)


def recalibrated(network: nn.Module, x: Tensor, *parts: Tensor) -> list[Tensor]:
    """Return what the network predicts for `parts` with the statistics of x, all of it one batch; nothing changes."""
    with _training(network, None):
        network(x)
        return [predict(network, part) for part in parts]


def noise(network: nn.Module, rows: Rows) -> list[dict[str, Any]]:
    """Return, for each replica, relative variances over random groups of m rows, by m.

    "mean" is Var(μ_B)/σ² and "variance" Var(σ²_B)/σ⁴, averaged over the units of all layers, of what the layers are
    given in training; σ² is the variance over all rows. "outputs" is the variance of a row's outputs over companions,
    relative to their variance over rows. "layers" is m·Var(μ_B)/σ² layer by layer, averaged over m: 1 for independent
    rows. Rows are drawn with replacement: no correction for a finite set is due.
    """
    found = {size: _noise(network, rows, size) for size in SIZES}
    for by_size in found.values():
        by_size["outputs"] /= found[SIZES[-1]]["spread"]
    layers = torch.stack([size * by_size["layers"] for size, by_size in found.items()]).mean(0)
    return [
        {q: {str(m): by_size[q][i].item() for m, by_size in found.items()} for q in QUANTITIES}
        | {"layers": layers[:, i].tolist()}
        for i in range(len(rows.specs))
    ]


def _noise(network: nn.Module, rows: Rows, size: int) -> dict[str, Tensor]:
    groups = DRAWN // size
    random = [np.random.default_rng([s.seed, size]) for s in rows.specs]

    def drawn(count: int) -> Tensor:
        pairs = zip(rows.splits, random, strict=True)
        return rows.take(np.stack([part.train[r.integers(0, len(part.train), count)] for part, r in pairs]))[0]

    with _training(network, size) as layers, _moments(layers, groups) as moments:
        pairs: list[Tensor] = []
        for _ in range(DRAWS):
            first = drawn(groups)  # sample i is in group i mod G: one row of each group, which meets companions twice
            outputs = [network(torch.cat([first, drawn(DRAWN - groups)], dim=1)) for _ in range(2)]
            pairs.append(torch.stack([y[:, :groups] for y in outputs]))
    one, other = torch.cat(pairs, dim=2)
    mean, variance = torch.stack([_relative(*map(list, zip(*layer, strict=True))) for layer in moments], dim=1)
    return {
        "mean": mean.mean(0),
        "variance": variance.mean(0),
        "outputs": (one - other).square().mean((1, 2)) / 2,
        "spread": _variance(one).mean(1),
        "layers": mean,
    }


@contextmanager
def _moments(layers: Sequence[BatchNorm], groups: int) -> Generator[list[list[tuple[Tensor, Tensor]]]]:
    """Collect, layer by layer, μ and σ² of the groups of every forward, (R, G, C) each."""
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]

    def collect(into: list[tuple[Tensor, Tensor]]) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].unflatten(1, (-1, groups))
            into.append((x.mean(1), _variance(x)))

        return hook

    hooks = [layer.register_forward_pre_hook(collect(into)) for layer, into in zip(layers, found, strict=True)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _relative(means: list[Tensor], variances: list[Tensor]) -> Tensor:
    """Return Var(μ_B)/σ² and Var(σ²_B)/σ⁴ as (2, R), averaged over units; σ² by the law of total variance."""
    mean, variance = torch.cat(means, dim=1), torch.cat(variances, dim=1)
    between, of_variance = _variance(mean), _variance(variance)
    whole = variance.mean(1) + between
    unbiased = mean.shape[1] / (mean.shape[1] - 1)
    return unbiased * torch.stack([(between / whole).mean(1), (of_variance / whole.square()).mean(1)])


def _variance(x: Tensor) -> Tensor:
    """Return the biased variance along axis 1; torch's own takes ten times as long there."""
    return (x - x.mean(1, keepdim=True)).square().mean(1)


def slope(variances: Mapping[str, float]) -> float:
    """Return by which power of m variances fall: the least-squares slope of log against log, 0 where there is none.

    >>> round(slope({"2": 0.5, "4": 0.25, "8": 0.125}), 6)
    -1.0
    """
    if not all(math.isfinite(v) and v > 0.0 for v in variances.values()):
        return 0.0
    m = [math.log(float(size)) for size in variances]
    return statistics.linear_regression(m, [math.log(v) for v in variances.values()]).slope


def measure(study: Study) -> Finding:
    """Fit the slopes, and compare the losses of the smallest virtual batches that decide with those of whole ones."""
    whole, sizes = study.settings.batch_size, virtual_batches(study)
    if not sizes:
        return Finding(skipped=f"needs a batch of {2 * SMALL} rows or more, to split it in two, got {whole}")
    seen = {size: [study.lab[s].probed[-1] for s in _specs(study, size)] for size in (*sizes, None)}
    noises = {q: [replica[q] for replica in seen[None]] for q in QUANTITIES}
    slopes = {q: [slope(replica) for replica in replicas] for q, replicas in noises.items()}
    loss = "cross-entropy" if study.data.task == "classification" else "squared error"
    ends = {name: _losses(study, seen, name) for name in ("recalibrated", "running", "train")}
    effects = _effects(slopes, ends, loss, whole)
    ratio, low, high = effects[len(QUANTITIES)].interval()
    falls = [f"m^{statistics.median(found):.2f}".replace("-", "−") for found in slopes.values()]
    by_layer = zip(*(s["layers"] for s in seen[None]), strict=True)
    layers = [f"{statistics.median(known(share, 0.0) for share in seeds):.2g}" for seeds in by_layer]
    smallest = str(sizes[0])
    moving, pooled = (statistics.median(ends[name][smallest]) for name in ("running", "recalibrated"))
    return Finding(
        effects=effects,
        numbers={"noise": noises, "slopes": slopes, **ends, "loss": loss, "rate": study.moderate_rate},
        summary=f"Over groups of m rows the variance of the batch mean changes as {falls[0]}, that of the batch "
        f"variance as {falls[1]} and that of the outputs as {falls[2]}; in virtual batches of {SMALL} the test {loss} "
        f"is {ratio:.2g}× ({low:.2g} to {high:.2g}) what it is in whole ones of {whole}.",
        notes=(
            f"Every size trains at the one learning rate {study.moderate_rate:g}, for {study.settings.steps} steps.",
            "The training loss stands beside because less noise fits better: where it rises and the test loss falls, "
            "the noise has regularised.",
            f"m·Var(μ_B)/σ², 1 for independent rows, is {', '.join(layers)} from the first hidden layer to the last: "
            "the deeper ones are given rows that their group has normalised already.",
            f"In virtual batches of {smallest}, the running statistics left by training give a test {loss} of "
            f"{moving:.3g}, the recalibrated ones {pooled:.3g} (medians).",
        ),
    )


def _effects(
    slopes: Mapping[str, Sequence[float]], ends: Mapping[str, Mapping[str, Sequence[float]]], loss: str, whole: int
) -> tuple[Effect, ...]:
    compared = f"virtual batches of {SMALL} ÷ whole ones of {whole}"
    test, train = (
        tuple(a / b for a, b in zip(ends[name][str(SMALL)], ends[name][str(whole)], strict=True))
        for name in ("recalibrated", "train")
    )
    distances = {QUANTITIES[q]: tuple(abs(s - LAW) for s in found) for q, found in slopes.items()}
    return (
        *(
            Effect(f"variance of the {q} over m: distance of its slope from −1", d, NEAR, "below")
            for q, d in distances.items()
        ),
        Effect(f"test {loss}, {compared}", test, 1.0, "below", unit="×"),
        Effect(f"training {loss}, {compared}", train, 1.0, decides=False, unit="×"),
    )


def _losses(study: Study, seen: Mapping[int | None, Sequence[dict[str, Any]]], name: str) -> dict[str, list[float]]:
    """Return a loss by size, one a seed; a run that has diverged counts as the worst of all, or as guessing."""
    guess = math.log(study.data.outputs) if study.data.task == "classification" else 1.0
    worst = max(guess, *(known(s[name], guess) for seeds in seen.values() for s in seeds))
    whole = study.settings.batch_size
    return {str(size or whole): [max(known(s[name], worst), LEAST) for s in seeds] for size, seeds in seen.items()}


def picture(finding: Finding) -> Figure:
    """Draw the variances by size with the 1/m law, and the losses by size of virtual batches."""
    made, (law, by_size) = pictures.figure(2)
    colours = (pictures.NORMALISED, pictures.OTHER, pictures.FOURTH)
    labels = ("mean", "variance", "outputs")
    for replicas, label, colour in zip(finding.numbers["noise"].values(), labels, colours, strict=True):
        _band(law, {m: [replica[m] for replica in replicas] for m in replicas[0]}, label, colour)
    law.plot(SIZES, [1.0 / m for m in SIZES], color=pictures.INK, linewidth=0.8, linestyle=":", label="1/m")
    positive = all(v > 0 for replicas in finding.numbers["noise"].values() for r in replicas for v in r.values())
    law.set(xscale="log", yscale="log" if positive else "linear", xlabel="rows of a group, m")
    law.set(title="relative variance over groups")
    for name, label, colour in (
        ("running", "running statistics", pictures.OTHER),
        ("recalibrated", "recalibrated", pictures.NORMALISED),
    ):
        _band(by_size, finding.numbers[name], label, colour)
    by_size.set(xscale="log", yscale="log", xlabel="rows of a virtual batch", title=f"test {finding.numbers['loss']}")
    for axes, sizes in ((law, SIZES), (by_size, [int(s) for s in finding.numbers["running"]])):
        axes.set_xticks(sizes, [str(s) for s in sizes], minor=False)
        axes.minorticks_off()
        axes.legend()
    return made


def _band(axes: Axes, by_size: Mapping[str, Sequence[float]], label: str, colour: str) -> None:
    sizes, values = [int(s) for s in by_size], [sorted(v) for v in by_size.values()]
    axes.fill_between(sizes, [v[0] for v in values], [v[-1] for v in values], color=colour, alpha=0.18, linewidth=0)
    middle = [statistics.median(v) for v in values]
    axes.plot(sizes, middle, color=colour, marker="s", markersize=4, label=label)


CLAIM = Claim(
    id="regularization",
    statement="The noise of batch statistics regularises, and it shrinks as the batch grows.",
    source="Ioffe & Szegedy 2015, section 3.4; Hoffer, Hubara & Soudry 2017 for virtual batches",
    method="A trained network is given random groups of 2 to 128 rows in training mode, drawn with replacement. "
    "Measured over groups: the variances of each unit's mean and variance, relative to the unit's own, and that of a "
    "row's outputs as its companions change; and by which power of the size they fall, which the 1/m law says is −1. "
    "And networks are trained in the same batches, normalised whole or in virtual batches, all else being equal; the "
    "test loss is taken with statistics recalibrated on the training rows.",
    caption="Above: how the noise falls with the size of a group, and the 1/m law. Below: test loss by the size of the "
    "virtual batches, with recalibrated statistics and with the running ones: median, and range over seeds.",
    runs=runs,
    measure=measure,
    picture=picture,
    own_model=False,
)
