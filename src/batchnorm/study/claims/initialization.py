"""Is training less sensitive to the initial weights?"""

from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.curves import draw_goal, draw_grid, score
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding
from batchnorm.study.training import Spec

LARGER_SHARE = 0.2
SEEDS = 3


def runs(study: Study) -> list[Spec]:
    """The learning rates from which each side's best is chosen."""
    return [s for a in ("sigmoid", "relu") for side in ("none", "before") for s in _sweep(study, side, a)]


def _sweep(study: Study, side: Any, activation: str) -> list[Spec]:
    steps = study.settings.steps if activation == "sigmoid" else study.settings.short_steps
    return study.sweep(side, activation=activation, steps=steps)


def further(study: Study) -> list[Spec]:
    """Every initial std, at each side's best learning rate."""
    return [s for a in ("sigmoid", "relu") for side in ("none", "before") for s in _stds(study, side, a)]


def _stds(study: Study, side: Any, activation: str) -> list[Spec]:
    sweep = _sweep(study, side, activation)
    best = replace(sweep[0], rate=study.best(sweep)[0])
    seeds = range(min(SEEDS, study.settings.seeds))
    return [replace(best, std=std, seed=seed) for std in study.settings.grid(-3.0, 1.0) for seed in seeds]


def measure(study: Study) -> Finding:
    """Count the stds from which each seed ends at the goal."""
    goals = study.goals()
    ends: dict[str, Any] = {}
    share: dict[str, Any] = {}
    for activation in ("sigmoid", "relu"):
        for side in ("none", "before"):
            specs = _stds(study, side, activation)
            grid = dict.fromkeys(s.std for s in specs)
            by_std = {std: [score(study.lab[s].test[-1]) for s in specs if s.std == std] for std in grid}
            key = f"{activation} {side}"
            ends[key] = {f"{std:g}": end for std, end in by_std.items()}
            share[key] = [
                sum(end[i] >= goals[i] for end in by_std.values()) / len(by_std) for i in range(len(specs) // len(grid))
            ]
    gains = {
        a: tuple(w - p for p, w in zip(share[f"{a} none"], share[f"{a} before"], strict=True))
        for a in ("sigmoid", "relu")
    }
    both = tuple((s + r) / 2 for s, r in zip(gains["sigmoid"], gains["relu"], strict=True))
    kept = {key: sum(values) / len(values) for key, values in share.items()}
    return Finding(
        effects=(
            Effect("share of initial stds that work, with − without, mean of both activations", both, LARGER_SHARE),
            *(Effect(f"the same with {a}", gain, LARGER_SHARE, decides=False) for a, gain in gains.items()),
        ),
        numbers={"ends": ends, "share": share, "goal": study.goal(), "score": study.data.score_name},
        summary=f"Of the initial stds tried, {kept['sigmoid none']:.0%} work without and "
        f"{kept['sigmoid before']:.0%} with batch normalization for the sigmoid, {kept['relu none']:.0%} and "
        f"{kept['relu before']:.0%} for ReLU.",
        notes=("The learning rate is each side's best at the usual initialization, and stays fixed.",),
    )


def picture(finding: Finding) -> Figure:
    """Draw the final score against the initial std, a panel an activation."""
    made, panels = pictures.figure(2, share_y=True)
    for axes, activation in zip(panels, ("sigmoid", "relu"), strict=True):
        draw_grid(axes, {side: finding.numbers["ends"][f"{activation} {side}"] for side in ("none", "before")})
        draw_goal(axes, finding.numbers["goal"])
        axes.set(xlabel="std of the initial weights", title=activation)
    panels[0].set_ylabel(f"final test {finding.numbers['score']}")
    panels[0].legend(loc="center left")
    return made


CLAIM = Claim(
    id="initialization",
    statement="Training is less sensitive to the initial weights.",
    source="Ioffe & Szegedy 2015, section 1",
    method="Three seeds. Weights drawn from N(0, std²) with std from 0.001 to 10, each side at its own best learning "
    "rate for the usual initialization. A std works for a seed if the run ends at the goal or above.",
    caption="Final test score at each std of the initial weights: median, and range over seeds. Runs that diverged lie "
    "at zero.",
    runs=runs,
    further=further,
    measure=measure,
    picture=picture,
    own_model=False,
)
