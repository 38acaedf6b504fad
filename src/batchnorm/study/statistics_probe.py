"""A look into a network that is normalised by batches: its losses with recalibrated statistics, and their noise."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from batchnorm.study.training import Rows, evaluated_steps, losses, predict, scores
from batchnorm.torch import BatchNorm, transaction

PROBE = f"{__name__}:probe"
SIZES = (2, 4, 8, 16, 32, 64, 128)
QUANTITIES = {"mean": "batch mean", "variance": "batch variance", "outputs": "outputs of the network"}
DRAWN = 1024  # rows of a forward, a multiple of every size
DRAWS = 4
FIRST_LOOK = 10
MOST_ROWS = 500  # that statistics are recalibrated on: the variance of a mean is then 1/500 of that between rows


def looks(steps: int) -> list[int]:
    """Return the steps at which losses are taken: every third of the evaluated ones from the tenth on, and the last.

    >>> looks(120)
    [10, 18, 33, 63, 120]
    """
    return [step for step in evaluated_steps(steps)[::-3][::-1] if step >= FIRST_LOOK]


def probe(network: nn.Module, rows: Rows, step: int) -> list[dict[str, Any]]:
    """Take each replica's losses on validation and test rows; after the last step, its scores and its noise too.

    Returns:
        One dictionary a replica: "validation" and "test", losses with recalibrated statistics; after the last step
        also "train" and "running" (the test loss with running statistics), "score" and "running_score" on test rows,
        and what `noise` returns if the run is normalised by whole batches of the data as they are.
    """
    spec = rows.specs[0]
    if step not in looks(spec.steps):
        return [{} for _ in rows.specs]
    x, y = rows.take(np.stack([part.train[:MOST_ROWS] for part in rows.splits]))
    (x_validation, y_validation), (x_test, y_test) = rows.part("validation"), rows.part("test")
    plain = spec.placement == "none"
    outputs = (
        [predict(network, part) for part in (x, x_validation, x_test)]
        if plain
        else recalibrated(network, x, x, x_validation, x_test)
    )
    values = {
        name: losses(output, truth, rows.data).tolist()
        for name, output, truth in zip(("train", "validation", "test"), outputs, (y, y_validation, y_test), strict=True)
    }
    if step < spec.steps:
        del values["train"]
        return _by_replica(values)
    running = predict(network, x_test)
    values["running"] = losses(running, y_test, rows.data).tolist()
    values["score"] = scores(outputs[2], y_test, rows.data)
    values["running_score"] = scores(running, y_test, rows.data)
    seen = _by_replica(values)
    as_it_is = not (plain or spec.virtual_batch_size or spec.label_noise or spec.rows)
    return [s | n for s, n in zip(seen, noise(network, rows), strict=True)] if as_it_is else seen


def _by_replica(values: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [dict(zip(values, replica, strict=True)) for replica in zip(*values.values(), strict=True)]


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
    measured = {size: _noise(network, rows, size) for size in SIZES}
    for by_size in measured.values():
        by_size["outputs"] /= measured[SIZES[-1]]["spread"]
    layers = torch.stack([size * by_size["layers"] for size, by_size in measured.items()]).mean(0)
    return [
        {q: {str(m): by_size[q][i].item() for m, by_size in measured.items()} for q in QUANTITIES}
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
    moments: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]

    def collect(into: list[tuple[Tensor, Tensor]]) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].unflatten(1, (-1, groups))
            into.append((x.mean(1), _variance(x)))

        return hook

    hooks = [layer.register_forward_pre_hook(collect(into)) for layer, into in zip(layers, moments, strict=True)]
    try:
        yield moments
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
