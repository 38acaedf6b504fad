"""Is the loss smoother, so that a gradient tells farther ahead?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from batchnorm.study import labels, pictures, watched
from batchnorm.study.curves import SIDES
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, known, number, the, times
from batchnorm.study.gradients import batch, between_steps, flat, loss_and_gradients, norms, put
from batchnorm.study.networks import Placement
from batchnorm.study.optimizers import ReplicaOptimizer
from batchnorm.study.training import Rows, Spec, evaluated_steps

SMOOTHER = 1.5
LENGTHS = tuple(0.5 * 8.0 ** (i / 7) for i in range(8))  # times the learning rate, as Santurkar et al. step
LOOKS = 8
VARIED_SEEDS = 3
SLOWER = 10.0
SMALL_STD = 0.01
PROBE, PROBE_OF_SLOW_RUN = f"{__name__}:probe", f"{__name__}:probe_of_slow_run"
MEASURES = {
    "range": ("loss", "range of the loss along the gradient step, without ÷ with"),
    "change": ("gradient", "largest change of the gradient along the step, without ÷ with"),
    "beta": ("effective smoothness", "largest change of the gradient ÷ distance moved, without ÷ with"),
}


def looks(steps: int) -> list[int]:
    """Return the evaluated steps at which the loss is looked at: eight, evenly over the run.

    >>> looks(120)
    [0, 18, 33, 51, 63, 78, 97, 120]
    """
    marks = evaluated_steps(steps)
    return sorted({min(marks, key=lambda mark: abs(mark - steps * i / (LOOKS - 1))) for i in range(LOOKS)})


def _spec(study: Study, network: str, side: Placement, **choices: Any) -> Spec:
    """Return a watched run, at the learning rate that is best without batch normalization."""
    rate = study.at(study.first).tune("none", network).rate
    return study.spec(network, **{"placement": side, "rate": rate, "probe": PROBE, **choices})


def _varied(study: Study) -> dict[str, Spec]:
    """Return other ways to train the main network, to compare smoothness and scores over."""
    if study.settings.quick or study.settings.model:
        return {}
    varied: dict[str, Spec] = {}
    for side in SIDES:
        base = _spec(study, study.main, side)
        slow = replace(base, rate=float(f"{base.rate / SLOWER:.2g}"), probe=PROBE_OF_SLOW_RUN)
        varied[f"{SIDES[side][0]}, a tenth of the learning rate"] = slow
    varied[f"without, initial weights of std {SMALL_STD:g}"] = _spec(study, study.main, "none", std=SMALL_STD)
    return varied | {"with layer normalization": _spec(study, study.main, "before", norm="layer")}


def runs(study: Study) -> list[list[Spec]]:
    """The runs that choose the learning rate without batch normalization; then both sides at it, watched."""
    tunings = [study.at(study.first).tune("none", network) for network in study.networks]
    units = [unit for tuning in tunings for unit in tuning.units]
    if not all(tuning.settled for tuning in tunings):
        return units
    for network in study.networks:
        units += [unit for side in SIDES for unit in watched.units(study, _spec(study, network, side))]
    return [*units, *(_few(study, spec) for spec in _varied(study).values())]


def _few(study: Study, spec: Spec) -> list[Spec]:
    return study.seeds(spec, 0, min(VARIED_SEEDS, study.first))


def probe(network: nn.Module, rows: Rows, step: int) -> list[dict[str, Any]]:
    """Look along the gradient step at some of the steps of training."""
    return _look(network, rows, step, 1.0)


def probe_of_slow_run(network: nn.Module, rows: Rows, step: int) -> list[dict[str, Any]]:
    """Look as far ahead in a run at a tenth of the learning rate as in the others."""
    return _look(network, rows, step, SLOWER)


def _look(network: nn.Module, rows: Rows, step: int, factor: float) -> list[dict[str, Any]]:
    spec = rows.specs[0]
    if step not in looks(spec.steps):
        return [{} for _ in rows.specs]
    with between_steps(network, rows):
        measured = along(network, batch(rows, step), rows, [factor * s.rate for s in rows.specs])
    return [{name: values[i].item() for name, values in measured.items()} for i in range(len(rows.specs))]


def along(network: nn.Module, data: tuple[Tensor, Tensor], rows: Rows, rates: Sequence[float]) -> dict[str, Tensor]:
    """Move against the gradient g, from θ to θ − t·g, and return what each replica's loss does, (R,) each.

    t is each replica's rate times each of `LENGTHS`. Returned are "loss", and "lowest" and "highest" along the way;
    their "range"; "change", the largest ‖g(θ − t·g) − g‖; and "beta", the largest ‖g(θ − t·g) − g‖ ÷ ‖t·g‖. The
    parameters stay at the last place.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    loss, gradients = loss_and_gradients(network, data, rows, parameters)
    here = flat(network, gradients)
    moves, reach = ReplicaOptimizer("sgd", network, rates), torch.tensor(rates) * norms(here)
    ahead: list[tuple[Tensor, Tensor, Tensor]] = []
    for moves.rate in LENGTHS:
        put(parameters, start)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        moves.step()
        there, changed = loss_and_gradients(network, data, rows, parameters)
        change = norms(flat(network, changed) - here)
        ahead.append((there.double(), change, change / (moves.rate * reach)))
    losses, changes, betas = (torch.stack(column) for column in zip(*ahead, strict=True))
    lowest, highest = losses.amin(0), losses.amax(0)
    return {
        "loss": loss, "lowest": lowest, "highest": highest, "range": highest - lowest,
        "change": changes.amax(0), "beta": betas.amax(0),
    }  # fmt: skip


def measure(study: Study) -> Finding:
    """Compare the three measures, network by network, and smoothness with scores."""
    effects: list[Effect] = []
    numbers: dict[str, Any] = {"networks": {}}
    notes: list[str] = []
    for network in study.networks:
        specs: dict[Placement, Spec] = {side: _spec(study, network, side) for side in SIDES}
        seen: dict[Placement, watched.Probed] = {side: watched.probed(study, spec) for side, spec in specs.items()}
        part = study.named(network)
        obstacle = watched.unlearned(study, specs)
        for key, (short, name) in MEASURES.items():
            without, with_it = ([watched.typical(run, key) for run in seen[side]] for side in SIDES)
            effects.append(
                watched.quotients(name, without, with_it, SMOOTHER, part=f"{part}, {short}", obstacle=obstacle)
            )
        sizes = {SIDES[side][0]: [watched.typical(run, "range") for run in seeds] for side, seeds in seen.items()}
        notes += watched.diverged(part, sizes)
        numbers["networks"][network] = {
            "name": part,
            "rate": specs["none"].rate,
            "curves": {s: {k: watched.by_step(seeds, k) for k in (*MEASURES, "loss", "lowest", "highest")}
                       for s, seeds in seen.items()},
        }  # fmt: skip
    numbers["settings"] = _settings(study)
    notes.append(_score_note(numbers["settings"], study.metric.name, study.named(study.main)))
    notes.append("Both sides train at the learning rate that is best without batch normalization.")
    head = effects[0]
    return Finding(
        effects=tuple(effects),
        numbers=numbers,
        notes=tuple(notes),
        summary=f"In {the(study.named(study.main))}, the loss along a gradient step varies {_times(head)} with batch "
        "normalization than without.",
    )


def _times(effect: Effect) -> str:
    """Return how much less the loss varies: "24 times less"."""
    return "an unknown number of times less" if effect.bound == "unknown" else times(effect, "less", "more", "as much")


def _settings(study: Study) -> list[dict[str, Any]]:
    """Return effective smoothness and last test score of each way to train the main network, the smoothest first."""
    both = {f"{SIDES[side][0]} batch normalization": _spec(study, study.main, side) for side in SIDES}
    rows: list[dict[str, Any]] = []
    for name, spec in (both | _varied(study)).items():
        outcomes = study.outcomes(_few(study, spec))
        betas = [known(watched.typical(o.probed, "beta"), math.inf) for o in outcomes]
        scores = [known(o.test[-1], -math.inf) for o in outcomes]
        rows.append({"name": name, "beta": statistics.median(betas), "score": statistics.median(scores)})
    return sorted(rows, key=lambda row: row["beta"])


def _score_note(settings: Sequence[Mapping[str, Any]], score: str, part: str) -> str:
    """Return in words in how many pairs of ways to train the smoother one has the higher score."""
    pairs = list(combinations(settings, 2))
    agree = sum(smoother["score"] > other["score"] for smoother, other in pairs)
    always = "also" if agree == len(pairs) else "not always"
    counted = f"{agree} of {len(pairs)} pairs" if len(pairs) > 1 else f"{agree} of the 1 pair"
    rows = (f"{row['name']} ({number(row['beta'])}; {number(row['score'])})" for row in settings)
    return (
        f"Smoother is {always} more accurate: in {counted} of ways to train the {part}, the smoother one has the "
        f"higher test {score}. The smoothest first, with the largest change of the gradient ÷ distance, and the score: "
        f"{', '.join(rows)}."
    )


def picture(finding: Finding) -> Figure:
    """Draw the losses along the gradient step over training, a panel a network."""
    networks = list(finding.numbers["networks"].values())
    figure, panels = pictures.figure(len(networks))
    heads = [e for e in finding.effects if e.name == MEASURES["range"][1]]
    for axes, network, effect in zip(panels, networks, heads, strict=True):
        for side, curves in network["curves"].items():
            _draw(axes, curves, side)
        axes.set(yscale="log", ylabel="training loss", title=f"{network['name']}: loss varies {_times(effect)} with")
    panels[-1].set_xlabel("training steps")
    return figure


def _draw(axes: Axes, curves: Mapping[str, Any], side: Placement) -> None:
    label, colour, marker = SIDES[side]
    steps, low, high = curves["lowest"]["steps"], curves["lowest"]["median"], curves["highest"]["median"]
    if len(low) == len(high):
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    (line,) = axes.plot(
        curves["loss"]["steps"], curves["loss"]["median"], color=colour, marker=marker, markersize=4, label=label
    )
    labels.label_line(axes, line)


CLAIM = Claim(
    id="landscape",
    title="Smoother loss",
    statement="The loss is smoother with batch normalization: along a gradient step, loss and gradient change less.",
    source="Santurkar, Tsipras, Ilyas & Madry 2018, section 3.1 and figure 4",
    method="Both sides train at the learning rate that is best without batch normalization. At eight steps, evenly "
    "over the run, the weights are moved against the gradient of a training batch, by eight lengths from 0.5 to 4 "
    "times the learning rate. Measured over these lengths, in training mode: the range of the loss, the largest change "
    "of the gradient, and the largest change of the gradient divided by the distance moved. Each is the median over "
    "the eight steps.",
    caption="Loss of one training batch over training, and how far it varies along a gradient step of 0.5 to 4 times "
    "the learning rate (band): medians over seeds.",
    runs=runs,
    measure=measure,
    picture=picture,
    adds_seeds=False,
)
