"""Scores over steps or over a grid, as numbers and as lines: median over seeds, with the range as a band."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from batchnorm.study import pictures
from batchnorm.study.training import Outcome

SIDES = {"none": ("without", pictures.PLAIN, "o"), "before": ("with", pictures.NORMALISED, "s")}


def score(value: float) -> float:
    """Return a score, or minus infinity for a run that has diverged."""
    return -math.inf if math.isnan(value) else value


def median_curve(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return steps, and the median, lowest and highest test score over seeds at each."""
    columns = [sorted(map(score, column)) for column in zip(*(o.test for o in outcomes), strict=True)]
    return {
        "steps": outcomes[0].steps,
        "median": [statistics.median(c) for c in columns],
        "low": [c[0] for c in columns],
        "high": [c[-1] for c in columns],
    }


def draw_curve(axes: Axes, curve: Mapping[str, Any], label: str, colour: str) -> None:
    """Draw a median curve over steps, with its range."""
    axes.fill_between(curve["steps"], curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0)
    axes.plot(curve["steps"], curve["median"], color=colour, label=label)


def draw_grid(axes: Axes, ends: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw final scores over a grid without and with batch normalization; diverged runs lie at zero."""
    for side, (label, colour, marker) in SIDES.items():
        seeds = [sorted(max(value, 0.0) for value in values) for values in ends[side].values()]
        at = [float(point) for point in ends[side]]
        axes.fill_between(at, [s[0] for s in seeds], [s[-1] for s in seeds], color=colour, alpha=0.18, linewidth=0)
        axes.plot(at, [s[len(s) // 2] for s in seeds], color=colour, marker=marker, markersize=4, label=label)
    axes.set(xscale="log", ylim=(0, 1.03))


def draw_goal(axes: Axes, *goals: float) -> None:
    """Draw a dotted line at each goal."""
    for goal in goals:
        axes.axhline(goal, color=pictures.INK, linewidth=0.8, linestyle=":")
