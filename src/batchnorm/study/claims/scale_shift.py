"""Can γ and β undo the normalisation, and does any optimizer learn them?"""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from batchnorm.study import pictures
from batchnorm.study.design import SHIFT, Study
from batchnorm.study.findings import Claim, Effect, Finding, known
from batchnorm.study.networks import replica_batch_norm
from batchnorm.study.optimizers import OPTIMIZERS, ReplicaOptimizer
from batchnorm.study.training import Rows, Spec
from batchnorm.torch import BatchNorm

UNDONE = 1e-3
MOVED = 0.001
IDENTITY_STEPS = 600
PROBE = f"{__name__}:probe"
COLOURS = dict(zip(OPTIMIZERS, pictures.COLOURS, strict=True))


def _specs(study: Study, optimizer: str) -> list[Spec]:
    rate = study.moderate_rate() * 10 ** (SHIFT[optimizer] - study.shift)
    steps = study.settings.short_steps // 2
    return study.seeds(study.spec(placement="before", rate=rate, optimizer=optimizer, steps=steps, probe=PROBE))


def runs(study: Study) -> list[list[Spec]]:
    """One run for each optimizer and seed, watched."""
    return [_specs(study, optimizer) for optimizer in OPTIMIZERS]


def probe(network: nn.Module, rows: Rows, step: int) -> list[dict[str, Any]]:
    """Return the 10, 50 and 90 % quantiles of γ and β over all units, for each replica."""
    layers = [m for m in network.modules() if isinstance(m, BatchNorm)]
    seen: list[dict[str, Any]] = [{} for _ in rows.specs]
    for name in ("weight", "bias"):
        units = torch.cat([getattr(layer, name).detach().flatten(1) for layer in layers], dim=1)
        quantiles = units.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=1).T.tolist()
        moved = (units - (1.0 if name == "weight" else 0.0)).abs().median(dim=1).values.tolist()
        for replica, q, m in zip(seen, quantiles, moved, strict=True):
            replica |= {name: q, f"{name} moved": m}
    return seen


def recovered(x: torch.Tensor, optimizer: str) -> list[float]:
    """Let γ and β of one layer learn to give back its input; return the relative error left, one a replica.

    The layer normalises each batch, so it must find γ = √(σ²+ε) and β = μ. The learning rate falls to zero along a
    cosine, as optimizers with a fixed step length need in order to settle.
    """
    layer = replica_batch_norm(x.shape[0], x.shape[2])
    start = {"sgd": 0.3, "momentum": 0.05, "rmsprop": 0.03, "adam": 0.05}[optimizer]
    moves = ReplicaOptimizer(optimizer, layer, [1.0] * x.shape[0])
    for step in range(IDENTITY_STEPS):
        moves.rate = start * 0.5 * (1.0 + torch.cos(torch.tensor(torch.pi * step / IDENTITY_STEPS)).item())
        (layer(x) - x).square().mean(1).sum().backward()
        moves.step()
    with torch.no_grad():
        error = (layer(x) - x).square().mean((1, 2)).sqrt()
    return (error / x.std(dim=(1, 2))).tolist()


def measure(study: Study) -> Finding:
    """Recover the identity with each optimizer, and read the trajectories of the watched runs."""
    batch, _ = next(Rows.of(study.data, study.seeds(study.spec(scaling="standard"))).batches())
    flat = batch.flatten(2)
    varied = flat[..., (flat.std(dim=1) > 0.1).all(dim=0)][..., :32]
    x = varied * torch.linspace(0.3, 3.0, varied.shape[2]) + torch.linspace(-2.0, 2.0, varied.shape[2])
    errors = {optimizer: [known(e, 1.0) for e in recovered(x, optimizer)] for optimizer in OPTIMIZERS}
    watched = {optimizer: [study.lab[s].probed for s in _specs(study, optimizer)] for optimizer in OPTIMIZERS}
    moved = {
        optimizer: [known(seen[-1]["weight moved"], 0.0) for seen in seeds] for optimizer, seeds in watched.items()
    }
    start = {name: watched["sgd"][0][0][name] for name in ("weight", "bias")}
    left = pictures.power_of_ten(float(f"{max(max(e) for e in errors.values()):.0e}"))
    return Finding(
        effects=(
            Effect.of("error when γ and β learn the identity, worst optimizer", _worst(errors, max), UNDONE, "below"),
            Effect.of("median |γ − 1| after training, least of the optimizers", _worst(moved, min), MOVED),
        ),
        numbers={
            "errors": errors,
            "moved": moved,
            "trajectories": {optimizer: _trajectory(seeds) for optimizer, seeds in watched.items()},
            "start": start,
        },
        summary=f"Learning the identity, γ and β leave an error of {left} with the worst of {', '.join(OPTIMIZERS)}; "
        f"in the network they move from their start by {min(map(min, moved.values())):.2g} or more (median |γ − 1|).",
        notes=(f"They start at γ = {start['weight'][1]:g} and β = {start['bias'][1]:g}.",),
    )


def _worst(by_optimizer: dict[str, list[float]], of: Any) -> tuple[float, ...]:
    return tuple(of(values) for values in zip(*by_optimizer.values(), strict=True))


def _trajectory(seeds: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Return the quantiles by step, averaged over seeds."""
    steps = [seen["step"] for seen in seeds[0]]
    mean = {
        name: [[sum(s[i][name][q] for s in seeds) / len(seeds) for i in range(len(steps))] for q in range(3)]
        for name in ("weight", "bias")
    }
    return {"steps": steps, **mean}


def picture(finding: Finding) -> Figure:
    """Draw the spread of γ and β over training, by optimizer."""
    made, panels = pictures.figure(2)
    for axes, name, symbol in zip(panels, ("weight", "bias"), ("γ", "β"), strict=True):
        for optimizer, seen in finding.numbers["trajectories"].items():
            low, middle, high = seen[name]
            axes.fill_between(seen["steps"], low, high, color=COLOURS[optimizer], alpha=0.15, linewidth=0)
            axes.plot(seen["steps"], middle, color=COLOURS[optimizer], label=optimizer)
        axes.set(xlabel="training steps", title=f"{symbol} of all units")
    panels[0].legend(loc="best")
    return made


CLAIM = Claim(
    id="scale-shift",
    title="γ and β can undo it",
    statement="γ and β let the network undo the normalisation, and any optimizer learns them.",
    source="Ioffe & Szegedy 2015, section 3",
    method="One layer is trained by each optimizer to give back its own input, which it can only by γ = √(σ²+ε) and "
    "β = μ; the error is relative to the input's standard deviation. And γ and β of the base network are watched while "
    "it trains on the data, for half of the usual steps.",
    caption="γ and β over training: median over all units, and the band that holds 80 % of them, by optimizer.",
    runs=runs,
    measure=measure,
    picture=picture,
    own_model=False,
    check=True,
    adds_seeds=False,
)
