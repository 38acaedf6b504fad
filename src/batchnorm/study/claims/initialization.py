"""Is training less sensitive to the initial weights?"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.curves import SIDES, draw_goal, draw_grid, score
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding
from batchnorm.study.training import Spec
from batchnorm.study.usable import continued, range_effect, range_sentence, range_title, works

WIDER_BY = 0.5
STRIDE = 1.0
LOW, HIGH = -2.0, 0.0
Side = tuple[str, Any]  # a network, and "none" or "before"


def _sides(study: Study) -> Iterator[Side]:
    return ((network, side) for network in study.networks for side in SIDES)


def runs(study: Study) -> list[list[Spec]]:
    """The runs that choose each side's learning rate; then every initial std at it, and more while the last works."""
    tunings = {key: study.tune(key[1], key[0]) for key in _sides(study)}
    units = [unit for tuning in tunings.values() for unit in tuning.units]
    if all(tuning.settled for tuning in tunings.values()):
        units += [_at(study, key, std) for key in tunings for std in _stds(study, key)]
    return units


def steps(study: Study, network: str) -> int:
    """Return the steps of all runs: half of those that the learning rate was chosen in."""
    return study.steps_of(network) // 2


def _at(study: Study, key: Side, std: float) -> list[Spec]:
    """Return the runs at an initial std, one for each seed of the first look."""
    network, side = key
    spec = study.spec(network, placement=side, rate=study.tune(side, network).rate, std=std)
    return [replace(s, steps=steps(study, network)) for s in study.seeds(spec, 0, study.first)]


def _stds(study: Study, key: Side) -> list[float]:
    return continued(study, study.settings.grid(LOW, HIGH, STRIDE), partial(_at, study, key), STRIDE)


def measure(study: Study) -> Finding:
    """Count the decades of stds from which each seed ends at the goal."""
    effects: list[Effect] = []
    numbers: dict[str, Any] = {"networks": {}, "goal": study.goal(), "score": study.metric.name}
    for network in study.networks:
        tried = {
            side: {std: _at(study, (network, side), std) for std in _stds(study, (network, side))} for side in SIDES
        }
        usable = {side: {std: works(study, specs) for std, specs in by_std.items()} for side, by_std in tried.items()}
        part = study.named(network)
        name = "range of initial stds that work, with − without"
        effects.append(range_effect(name, usable, stride=STRIDE, threshold=WIDER_BY, part=part))
        numbers["networks"][network] = {
            "name": part,
            "ends": {
                side: {f"{std:g}": [score(o.test[-1]) for o in study.outcomes(specs)] for std, specs in by_std.items()}
                for side, by_std in tried.items()
            },
        }
    return Finding(
        effects=tuple(effects),
        numbers=numbers,
        summary=range_sentence(effects[0], "initial stds"),
        notes=("The learning rate is each side's best at the usual initialization, and stays fixed.",),
    )


def picture(finding: Finding) -> Figure:
    """Draw the final score against the initial std, a panel a network."""
    networks = list(finding.numbers["networks"].values())
    figure, panels = pictures.figure(len(networks), share_y=True)
    effects = {e.part: e for e in finding.effects if e.decides}
    for axes, network in zip(panels, networks, strict=True):
        draw_grid(axes, network["ends"])
        draw_goal(axes, finding.numbers["goal"])
        axes.set(title=f"{network['name']}: {range_title(effects[network['name']])}")
    panels[-1].set_xlabel("std of the initial weights")
    panels[0].set_ylabel(f"final test {finding.numbers['score']}")
    return figure


CLAIM = Claim(
    id="initialization",
    title="Less sensitive to weights",
    statement="Training is less sensitive to the initial weights.",
    source="Ioffe & Szegedy 2015, section 1",
    method="Weights are drawn from N(0, std²) with std from 0.01 to 1, and beyond as long as the last one works, each "
    "side at its own best learning rate for the usual initialization, in half of the usual steps. A std works for a "
    "seed if the run ends at the goal; the range counts the stds that work, a decade each.",
    caption="Final test score at each std of the initial weights: median, and range over seeds.",
    runs=runs,
    measure=measure,
    picture=picture,
    own_model=False,
    adds_seeds=False,
)
