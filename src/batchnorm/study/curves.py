"""Scores over steps or over a grid, as numbers and as lines: median over seeds, with the range as a band."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from numpy.typing import NDArray

from batchnorm.study import labels, pictures

if TYPE_CHECKING:  # which would bring torch along
    from batchnorm.study.networks import Placement
    from batchnorm.study.training import Outcome

SIDES: "dict[Placement, tuple[str, str, str]]" = {
    "none": ("without", pictures.PLAIN, "o"),
    "before": ("with", pictures.NORMALISED, "s"),
}
MOST_BANDS = 2  # more of them over one another cannot be told apart
WHISKERS = 7


def score(value: float) -> float:
    """Return a score, or minus infinity for a run that has diverged."""
    return -math.inf if math.isnan(value) else value


def median_curve(outcomes: Sequence["Outcome"]) -> dict[str, Any]:
    """Return steps, and the median, lowest and highest test score over seeds at each."""
    columns = [sorted(map(score, column)) for column in zip(*(o.test for o in outcomes), strict=True)]
    return {
        "steps": outcomes[0].steps,
        "median": [statistics.median(c) for c in columns],
        "low": [c[0] for c in columns],
        "high": [c[-1] for c in columns],
    }


def draw_curve(axes: Axes, curve: Mapping[str, Any], label: str, colour: str, *, floor: float | None = None) -> None:
    """Draw a median curve over steps, named at its end, with its range: a band, or whiskers from the third curve on.

    Args:
        axes: The axes.
        curve: Steps, "median", and the range as "low" and "high" where it is known; None and minus infinity stand
            for runs that diverged.
        label: Its name.
        colour: Its colour.
        floor: Where the axis is cut off if scores fall below; None: at 0, or at −0.25 where scores lie below 0.
    """
    steps = np.asarray(curve["steps"], float)
    median = _scores(curve["median"])
    low, high = (_scores(curve.get(end) or curve["median"]) for end in ("low", "high"))
    bottom = _floor(low) if floor is None else floor
    _band(axes, steps, _sunk(low, bottom), _sunk(high, bottom), colour)
    (line,) = axes.plot(steps, _sunk(median, bottom), color=colour, label=label, linewidth=1.8)
    labels.label_line(axes, line)
    axes.margins(x=0.0)  # the labels stand right of the axes then
    labels.reach(axes, float(np.max(high)))
    for lowest in {float(np.min(low)), float(np.min(low[np.isfinite(low)], initial=math.inf))}:
        labels.clip_r2(axes, lowest, bottom)


def draw_grid(axes: Axes, ends: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw final scores over a grid without and with batch normalization; diverged runs are crosses at the bottom."""
    values = [_scores(end) for by_point in ends.values() for end in by_point.values()]
    every = np.concatenate(values) if values else np.zeros(1)
    bottom = _floor(every)
    axes.set(xscale="log", ylim=(bottom, 1.03))
    for side, (label, colour, marker) in SIDES.items():
        if not ends[side]:
            continue
        at = np.asarray([float(point) for point in ends[side]])
        seeds = [np.sort(_scores(end)) for end in ends[side].values()]
        low, middle, high = (np.asarray([column[i] for column in seeds]) for i in (0, len(seeds[0]) // 2, -1))
        _band(axes, at, np.maximum(low, bottom), np.maximum(high, bottom), colour)
        gone = np.isneginf(middle)
        look: dict[str, Any] = {"color": colour, "clip_on": False}
        (line,) = axes.plot(
            at, np.maximum(middle, bottom), marker=marker, markersize=4, markevery=~gone, label=label, **look
        )
        if gone.any():
            axes.plot(at[gone], np.full(gone.sum(), bottom), marker="x", markersize=7, linestyle="", **look)
        labels.label_line(axes, line)
    labels.clip_r2(axes, float(np.min(every[np.isfinite(every)], initial=0.0)), bottom)


def draw_goal(axes: Axes, *goals: float, guess: float | None = None) -> None:
    """Draw a dotted line at each goal, and at what guessing scores if that is known, each with its name on it."""
    for goal in filter(math.isfinite, goals):  # there is none where nothing was learned
        labels.name_line(axes, goal, f"goal {goal:.3g}")
    if guess is not None:
        labels.name_line(axes, guess, f"guessing {guess:.3g}")


def _scores(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return scores as an array; minus infinity for runs that diverged."""
    return np.asarray([-math.inf if value is None else score(value) for value in values])


def _floor(values: NDArray[np.float64]) -> float:
    return labels.FLOOR if np.min(values[np.isfinite(values)], initial=0.0) < 0 else 0.0


def _sunk(values: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Return what can be drawn of scores: below the floor, all that is to be seen is that they leave the axes."""
    return np.maximum(values, floor - 1.0)


def _band(
    axes: Axes, at: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], colour: str
) -> None:
    """Draw a range as a band, or as whiskers where the axes have bands enough."""
    if np.array_equal(low, high):
        return
    if sum(isinstance(child, PolyCollection) for child in axes.get_children()) < MOST_BANDS:
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
        return
    chosen = np.unique(np.linspace(0, len(at) - 1, min(WHISKERS, len(at))).round().astype(int))
    axes.vlines(at[chosen], low[chosen], high[chosen], color=colour, linewidth=1.0, alpha=0.7)
