"""Do gradients neither explode nor vanish on their way through a deep network?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from batchnorm.study import labels, pictures, watched
from batchnorm.study.curves import SIDES
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, quantity
from batchnorm.study.gradients import batch, between_steps, loss_and_gradients, norms, weights
from batchnorm.study.networks import Placement
from batchnorm.study.scores import r2, skill
from batchnorm.study.training import Outcome, Rows, Spec

CLOSER_BY = 1.0
DEEP = (100,) * 20
LOW, HIGH, STRIDE = -2.0, 1.0, 1.0  # learning rates in decades, for plain SGD
LEARNED = 0.1  # of the loss of guessing
TINIEST = 2.0**-149  # float32
PROBE = f"{__name__}:probe"
NAME = "decades between the gradient norms of the first and the last hidden layer at the start, without − with"
ENDS = ("learned", "stayed at guessing", "diverged")


def _start(study: Study, network: str, side: Placement) -> Spec:
    """Return a run that is there for its start alone."""
    return study.spec(network, placement=side, hidden=DEEP, steps=1, rate=_rates(study)[0], probe=PROBE)


def _rates(study: Study) -> list[float]:
    shift = study.shift - (1.0 if study.data.task == "regression" else 0.0)
    return study.settings.grid(LOW + shift, HIGH + shift, STRIDE)


def _trained(study: Study, network: str, side: Placement) -> list[Spec]:
    """Return short runs at learning rates a decade apart, for a few of the seeds: twenty layers take their time."""
    steps, count = (25, 1) if study.settings.quick else (60, 3)
    spec = study.spec(network, placement=side, hidden=DEEP, steps=steps, probe=PROBE)
    rates = _rates(study)
    return [s for rate in rates for s in study.seeds(replace(spec, rate=rate), 0, min(count, study.first))]


def runs(study: Study) -> list[list[Spec]]:
    """The gradients of every seed at the start; and a few short runs at rates a decade apart."""
    sides: list[tuple[str, Placement]] = [(network, side) for network in study.networks for side in SIDES]
    starts = [unit for network, side in sides for unit in watched.units(study, _start(study, network, side))]
    return [*starts, *(_trained(study, network, side) for network, side in sides)]


def probe(network: nn.Module, rows: Rows, step: int) -> list[dict[str, Any]]:
    """Return the norm of each layer's gradient on a training batch and the skill there, at a run's start and end."""
    if step not in (0, rows.specs[0].steps):
        return [{} for _ in rows.specs]
    with between_steps(network, rows):
        x, y = batch(rows, step)
        _, gradients = loss_and_gradients(network, (x, y), rows, weights(network))
        with torch.no_grad():
            skills = (r2 if rows.data.task == "regression" else skill)(network(x), y).tolist()
    by_layer = torch.stack([norms(gradient) for gradient in gradients], dim=1).tolist()
    return [{"norms": of_replica, "skill": share} for of_replica, share in zip(by_layer, skills, strict=True)]


def decades(by_layer: Sequence[float]) -> float:
    """Return by how many decades the first and the last hidden layer's gradients differ; NaN if one is not finite.

    The weights between hidden layers are compared, as only they are of one size: those of the first layer depend on
    the number of features, those of the output on the number of classes.

    >>> decades([7.0, 1e-3, 1.0, 10.0, 7.0])
    -4.0
    """
    first, last = by_layer[1], by_layer[-2]
    if not math.isfinite(first + last):
        return math.nan
    return math.log10(max(first, TINIEST)) - math.log10(max(last, TINIEST))


def end(outcome: Outcome) -> str:
    """Return how a run has ended: one of `ENDS`.

    Training mode tells, as running statistics lag behind so short a run: twenty layers add their lags up.
    """
    share = outcome.probed[-1]["skill"]
    if not math.isfinite(share):
        return "diverged"
    return "learned" if share >= LEARNED else "stayed at guessing"


def measure(study: Study) -> Finding:
    """Compare the decades between the layers, and count how runs end."""
    effects: list[Effect] = []
    numbers: dict[str, Any] = {"networks": {}, "rates": _rates(study)}
    notes: list[str] = []
    for network in study.networks:
        part = study.named(network)
        layers: dict[Placement, list[list[float]]] = {side: _norms(study, network, side) for side in SIDES}
        apart: dict[Placement, list[float]] = {
            side: [decades(by_layer) for by_layer in seeds] for side, seeds in layers.items()
        }
        gains = (abs(a) - abs(b) for a, b in zip(apart["none"], apart["before"], strict=True))
        effects.append(Effect.of(NAME, gains, CLOSER_BY, part=part, unit=" decades"))
        outcomes = {side: study.outcomes(_trained(study, network, side)) for side in SIDES}
        numbers["networks"][network] = {
            "name": part,
            "norms": layers,
            "decades": apart,
            "ends": {side: _counted(outcomes[side]) for side in SIDES},
            "decades after training": {side: _after(outcomes[side]) for side in SIDES},
        }
        notes += [_start_note(part, apart), _end_note(study, numbers["networks"][network])]
    return Finding(effects=tuple(effects), numbers=numbers, notes=tuple(notes), summary=_summary(effects[0]))


def _norms(study: Study, network: str, side: Placement) -> list[list[float]]:
    return [looks[0]["norms"] for looks in watched.probed(study, _start(study, network, side))]


def _counted(outcomes: Sequence[Outcome]) -> dict[str, int]:
    ends = [end(outcome) for outcome in outcomes]
    return {name: ends.count(name) for name in ENDS}


def _after(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the decades between the layers at the end of the runs that learned."""
    return [decades(o.probed[-1]["norms"]) for o in outcomes if end(o) == "learned"]


def _start_note(part: str, apart: Mapping[Placement, Sequence[float]]) -> str:
    """Return in words what the gradients do on either side."""
    words = [f"{_change(apart[side])} {SIDES[side][0]} batch normalization" for side in SIDES]
    return f"In the {part}, from the last hidden layer back to the first, the gradient norm {' and '.join(words)}."


def _change(values: Sequence[float]) -> str:
    middle = _middle(values)
    return f"{'grows' if middle > 0 else 'shrinks'} by {abs(middle):.2g} decades"


def _middle(values: Sequence[float]) -> float:
    """Return the median of those that are finite."""
    return statistics.median([v for v in values if math.isfinite(v)] or [math.nan])


def _end_note(study: Study, network: Mapping[str, Any]) -> str:
    """Return in words how many of the short runs learned, stayed at guessing and diverged."""
    words: list[str] = []
    for side in SIDES:
        ends = network["ends"][side]
        counts = ", ".join(f"{ends[name]} {name}" for name in ENDS)
        words.append(f"of {sum(ends.values())} runs {SIDES[side][0]} it, {counts}")
    steps = _trained(study, study.main, "none")[0].steps
    rates = ", ".join(f"{rate:g}" for rate in _rates(study))
    return f"In the {network['name']}, after {steps} steps at learning rates {rates}: {'; '.join(words)}."


def _summary(effect: Effect) -> str:
    value = effect.value()
    way = "farther apart" if value < 0 else "closer together"
    size = "an unknown number of decades" if math.isnan(value) else quantity(abs(value), effect.unit)
    return (
        f"In the {effect.part}, the gradient norms of the first and the last of {len(DEEP)} layers lie {size} {way} "
        "with batch normalization."
    )


def picture(finding: Finding) -> Figure:
    """Draw the gradient norm of each layer at the start, a panel a network."""
    networks = list(finding.numbers["networks"].values())
    figure, panels = pictures.figure(len(networks))
    for axes, network in zip(panels, networks, strict=True):
        for side, seeds in network["norms"].items():
            _draw(axes, seeds, side)
        without, with_it = (f"{abs(_middle(network['decades'][side])):.2g}" for side in SIDES)
        axes.set(yscale="log", ylabel="gradient norm", xticks=[1, *range(5, len(DEEP) + 1, 5)])
        axes.set_title(f"{network['name']}: {without} decades without, {with_it} with")
    panels[-1].set_xlabel("layer, from the inputs to the outputs")
    return figure


def _draw(axes: Axes, seeds: Sequence[Sequence[float]], side: Placement) -> None:
    label, colour, marker = SIDES[side]
    columns = [sorted(max(v, TINIEST) for v in column if math.isfinite(v)) for column in zip(*seeds, strict=True)]
    at = [layer for layer, column in enumerate(columns, start=1) if column]
    shown = [column for column in columns if column]
    axes.fill_between(at, [c[0] for c in shown], [c[-1] for c in shown], color=colour, alpha=0.18, linewidth=0)
    middle = [statistics.median(c) for c in shown]
    (line,) = axes.plot(at, middle, color=colour, marker=marker, markersize=4, label=label)
    labels.label_line(axes, line)


CLAIM = Claim(
    id="exploding-gradients",
    title="Gradients stay in bounds",
    statement="In deep networks gradients neither explode nor vanish from layer to layer.",
    source="Ioffe & Szegedy 2015, section 3.3; Santurkar et al. 2018, section 3; against it: Yang et al. 2019, who "
    "derive that gradients of deep ReLU networks with batch normalization explode at the start, 1.21 times a layer",
    method="Networks of 20 hidden layers of 100 units with the usual initial weights. Measured before the first step, "
    "on one training batch: the norm of the gradient of each layer's weights; compared are the decades between the "
    "first and the last of the weights between hidden layers. And a few runs are trained at learning rates a decade "
    "apart: a run has learned if its loss on a training batch ends a tenth or more below that of guessing.",
    caption="Norm of the gradient of each layer's weights before the first step: median, and range over seeds.",
    runs=runs,
    measure=measure,
    picture=picture,
    own_model=False,
    adds_seeds=False,
)
