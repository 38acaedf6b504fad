"""Do the distributions of a layer's inputs move less while the layers before it learn? Two measures that disagree."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from batchnorm.study import labels, pictures, watched
from batchnorm.study.curves import SIDES
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, times
from batchnorm.study.gradients import batch, between_steps, fixed_rows, loss_and_gradients, norms, put, weights
from batchnorm.study.networks import ACTIVATIONS, Placement
from batchnorm.study.optimizers import ReplicaOptimizer
from batchnorm.study.training import Rows, Spec, evaluated_steps

STEADIER = 1.5
LESS = 1.0
PERCENTILES = (0.15, 0.5, 0.85)
MOST_ROWS = 256  # whose percentiles are taken
MOST_UNITS = 20
EVERY = 3  # evaluated steps, from one look at the gradients to the next
DIGITS = 5  # of a percentile, as it is kept
PROBE = f"{__name__}:probe"
DRIFT = "range of the percentiles of the last activation's inputs over training ÷ their spread, without ÷ with"
CHANGES = {
    "relative": "change of a layer's gradient by the update of the layers before it ÷ its norm, without ÷ with",
    "turn": "turn of that gradient (1 − cosine), without ÷ with",
}


def _spec(study: Study, network: str, side: Placement) -> Spec:
    """Return a watched run, at the best learning rate of its own side."""
    rate = study.at(study.first).tune(side, network).rate
    return study.spec(network, placement=side, rate=rate, probe=PROBE)


def runs(study: Study) -> list[list[Spec]]:
    """The runs that choose the learning rates; then both sides at their own, watched."""
    sides: list[tuple[str, Placement]] = [(network, side) for network in study.networks for side in SIDES]
    tunings = [study.at(study.first).tune(side, network) for network, side in sides]
    units = [unit for tuning in tunings for unit in tuning.units]
    if all(tuning.settled for tuning in tunings):
        units += [unit for network, side in sides for unit in watched.units(study, _spec(study, network, side))]
    return units


def probe(network: nn.Module, rows: Rows, step: int) -> list[dict[str, Any]]:
    """Take the percentiles, and at some of the steps the change of the gradients too."""
    steps = rows.specs[0].steps
    with between_steps(network, rows):
        taken = percentiles(network, fixed_rows(rows, MOST_ROWS))
        changes = gradient_changes(network, batch(rows, step), rows) if step in looks(steps) else {}
    rounded = [[[float(f"{v:.{DIGITS}g}") for v in units] for units in of_replica] for of_replica in taken.tolist()]
    return [
        {"percentiles": of_replica} | {name: values[i].item() for name, values in changes.items()}
        for i, of_replica in enumerate(rounded)
    ]


def looks(steps: int) -> list[int]:
    """Return the steps at which the change of the gradients is measured: every third that is evaluated but the last.

    >>> looks(60)
    [0, 3, 6, 10, 18, 33]
    """
    return evaluated_steps(steps)[:-1:EVERY]


@torch.no_grad()
def percentiles(network: nn.Module, x: Tensor) -> Tensor:
    """Return the 15th, 50th and 85th percentile over rows of inputs of the last activation, (R, 3, units).

    Of more than 20 units, 20 at equal distances are taken.
    """
    kinds = tuple(kind.module for kind in ACTIVATIONS.values())
    last = [module for module in network.modules() if isinstance(module, kinds)][-1]
    inputs: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        network(x)
    finally:
        hook.remove()
    chosen = inputs[0][..., :: max(inputs[0].shape[-1] // MOST_UNITS, 1)][..., :MOST_UNITS]
    return chosen.quantile(torch.tensor(PERCENTILES, dtype=chosen.dtype), dim=1).transpose(0, 1)


def gradient_changes(network: nn.Module, data: tuple[Tensor, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Return how a layer's gradient changes when the layers before it take their step, averaged over layers, (R,).

    For the weights of layer i, G is the gradient on the batch, and G' that on the same batch after every parameter
    ahead of them has been updated: "relative" is ‖G' − G‖ ÷ ‖G‖, "turn" is 1 − cos(G, G'). The update is the first of
    the run's optimizer at its learning rate. The parameters stay somewhere between.
    """
    parameters, matrices = list(network.parameters()), weights(network)[1:]
    start = [p.detach().clone() for p in parameters]
    _, gradients = loss_and_gradients(network, data, rows, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    ReplicaOptimizer(rows.specs[0].optimizer, network, [s.rate for s in rows.specs]).step()
    moved = [p.detach().clone() for p in parameters]
    relative: list[Tensor] = []
    turns: list[Tensor] = []
    for matrix in matrices:
        place = next(i for i, p in enumerate(parameters) if p is matrix)
        put(parameters, [*moved[:place], *start[place:]])
        _, (after,) = loss_and_gradients(network, data, rows, [matrix])
        before = gradients[place]
        relative.append(norms(after - before) / norms(before))
        turns.append(1.0 - cosine_similarity(before.flatten(1).double(), after.flatten(1).double(), dim=1))
    return {"relative": torch.stack(relative).mean(0), "turn": torch.stack(turns).mean(0)}


def drift(looks: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return for each unit by how much its percentiles move in a run, relative to their spread.

    How far each percentile ranges over the steps, averaged over the three, divided by the largest distance from the
    15th to the 85th percentile at any step.
    """
    taken = np.array([look["percentiles"] for look in looks], dtype=np.float64)  # steps, percentiles, units
    ranges = np.ptp(taken, axis=0).mean(axis=0)
    spread = (taken[:, -1] - taken[:, 0]).max(axis=0)
    return np.divide(ranges, spread, out=np.full_like(ranges, math.nan), where=spread > 0).tolist()


def _typical_drift(looks: Sequence[Mapping[str, Any]]) -> float:
    """Return the median over units; NaN for a run that has diverged, and where no unit's inputs vary."""
    units = drift(looks)
    finite = [value for value in units if math.isfinite(value)]
    return statistics.median(finite) if 2 * len(finite) > len(units) else math.nan


def measure(study: Study) -> Finding:
    """Compare the drift of the percentiles, and the change of the gradients, network by network."""
    effects: list[Effect] = []
    numbers: dict[str, Any] = {"networks": {}}
    notes: list[str] = []
    for network in study.networks:
        specs: dict[Placement, Spec] = {side: _spec(study, network, side) for side in SIDES}
        seen: dict[Placement, watched.Probed] = {side: watched.probed(study, spec) for side, spec in specs.items()}
        part = study.named(network)
        obstacle = watched.unlearned(study, specs)
        drifts: dict[Placement, list[float]] = {
            side: [_typical_drift(run) for run in seeds] for side, seeds in seen.items()
        }
        effects.append(
            watched.quotients(
                DRIFT, drifts["none"], drifts["before"], STEADIER, part=f"{part}, percentiles", obstacle=obstacle
            )
        )
        for key, name in CHANGES.items():
            without, with_it = ([watched.typical(run, key) for run in seen[side]] for side in SIDES)
            effects.append(
                watched.quotients(name, without, with_it, LESS, part=f"{part}, gradients", obstacle=obstacle)
            )
        notes += watched.diverged(part, {SIDES[side][0]: values for side, values in drifts.items()})
        numbers["networks"][network] = {
            "name": part,
            "rates": {side: spec.rate for side, spec in specs.items()},
            "drift": drifts,
            "units": {side: _unit(seeds[0]) for side, seeds in seen.items()},
            **{key: {side: watched.by_step(seeds, key) for side, seeds in seen.items()} for key in CHANGES},
        }
        notes.append(_note(study, numbers["networks"][network], specs))
    return Finding(effects=tuple(effects), numbers=numbers, notes=tuple(notes), summary=_summary(effects))


def _unit(looks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the percentiles by step of the unit whose drift is the median one."""
    units = drift(looks)
    order = sorted((u for u in range(len(units)) if math.isfinite(units[u])), key=lambda u: units[u])
    unit = order[len(order) // 2] if order else 0
    levels = zip(*([level[unit] for level in look["percentiles"]] for look in looks), strict=True)
    return {"steps": [look["step"] for look in looks], "percentiles": [list(level) for level in levels]}


def _note(study: Study, network: Mapping[str, Any], specs: Mapping[Placement, Spec]) -> str:
    """Return what a reader must know to judge the gradients: the rates, and how far each side has come."""
    words: list[str] = []
    for side, spec in specs.items():
        scores = [o.test[-1] for o in study.outcomes(study.seeds(spec))]
        changes = network["relative"][side]["median"]
        early, late = (f"{changes[i]:.2g}" if changes else "unknown" for i in (0, -1))
        words.append(
            f"{SIDES[side][0]} it, at learning rate {spec.rate:g}, the gradient's relative change goes from {early} "
            f"to {late} and the test {study.metric.name} to {statistics.median(scores):.3g}"
        )
    return f"In the {network['name']}, {'; '.join(words)}."


def _summary(effects: Sequence[Effect]) -> str:
    head, gradients = effects[0], effects[1].verdict()
    ending = {"holds": "and the gradients of its layers change less too", "does not hold": "but its gradients do not"}
    return (
        f"In the {head.part.split(',')[0]}, the distribution of the last activation's inputs moves {_times(head)} with "
        f"batch normalization, {ending.get(gradients, 'while it is undecided whether its gradients change less')}."
    )


def _times(effect: Effect) -> str:
    return "an unknown number of times less" if effect.bound == "unknown" else times(effect, "less", "more", "as much")


def picture(finding: Finding) -> Figure:
    """Draw the percentiles of a typical unit on either side, and the change of the gradients in each network."""
    networks = list(finding.numbers["networks"].values())
    figure, panels = pictures.figure(len(SIDES) + len(networks), height=2.2)
    moves = next(e for e in finding.effects if e.name == DRIFT)
    pictures.headline(figure, f"{networks[0]['name']}: percentiles move {_times(moves)} with batch normalization")
    for axes, side in zip(panels, SIDES, strict=False):
        _draw_unit(axes, networks[0]["units"][side], side)
        middle = statistics.median([v for v in networks[0]["drift"][side] if math.isfinite(v)] or [math.nan])
        axes.set(xscale="symlog", ylabel="input of a unit", title=f"{SIDES[side][0]}: by {middle:.2g} of their spread")
    changes = [e for e in finding.effects if e.name == CHANGES["relative"]]
    for axes, network, effect in zip(panels[len(SIDES) :], networks, changes, strict=True):
        for side, curve in network["relative"].items():
            label, colour, marker = SIDES[side]
            (line,) = axes.plot(curve["steps"], curve["median"], color=colour, marker=marker, markersize=4, label=label)
            labels.label_line(axes, line)
        axes.set(xscale="symlog", yscale="log", ylabel="gradient changes by")
        axes.set_title(f"{network['name']}: gradients change {_times(effect)}")
    panels[-1].set_xlabel("training steps")
    return figure


def _draw_unit(axes: Axes, unit: Mapping[str, Any], side: Placement) -> None:
    _, colour, _ = SIDES[side]
    low, middle, high = unit["percentiles"]
    axes.fill_between(unit["steps"], low, high, color=colour, alpha=0.18, linewidth=0)
    for level, values in zip(PERCENTILES, (low, middle, high), strict=True):
        (line,) = axes.plot(unit["steps"], values, color=colour, label=f"{100 * level:.0f} %")
        labels.label_line(axes, line)


CLAIM = Claim(
    id="covariate-shift",
    title="Layer inputs move less",
    statement="While a network learns, the distributions of its layers' inputs move less with batch normalization "
    "(percentiles), and so do the problems that its layers solve (gradients).",
    source="Ioffe & Szegedy 2015, section 4.1 and figure 1; against it: Santurkar, Tsipras, Ilyas & Madry 2018, "
    "section 2.2, whose measure is the gradients",
    method="Each side trains at its own best learning rate. Percentiles: the 15th, 50th and 85th percentile of each "
    "input of the last hidden layer's activation, in training mode, over the same training rows; how far they range "
    "over the run, divided by the largest distance from the 15th to the 85th; median over units. Gradients: how much "
    "the gradient of a layer's weights on a batch changes when all layers before it take their step, relative to its "
    "norm, and by how much it turns (1 − cosine); mean over layers, median over steps.",
    caption="Above: percentiles of the input of a typical unit of the last hidden layer while the network trains, "
    "without and with batch normalization. Below: how much a layer's gradient changes by the update of the layers "
    "before it, median over seeds.",
    runs=runs,
    measure=measure,
    picture=picture,
    own_model=False,
    adds_seeds=False,
)
