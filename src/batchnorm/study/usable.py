"""Ranges of a setting that work: a grid that is continued as long as its last point works, and its width."""

import math
from collections.abc import Callable, Mapping, Sequence

from batchnorm.study.curves import score
from batchnorm.study.design import Study
from batchnorm.study.findings import Effect, quantity, the
from batchnorm.study.training import Spec

EXTENSIONS = 2  # points that a grid is continued by on either side, at the most
Runs = Callable[[float], list[Spec]]  # the runs at a point of the grid, one a seed


def works(study: Study, runs: Sequence[Spec]) -> list[bool]:
    """Return whether each run, one a seed, ends at the goal."""
    ends = [score(o.test[-1]) for o in study.outcomes(runs)]
    return [end >= goal for end, goal in zip(ends, study.goals(), strict=False)]


def continued(study: Study, grid: Sequence[float], runs: Runs, stride: float) -> list[float]:
    """Return the points of a grid and those that continue it beyond a last point that works, the next to try included.

    Args:
        study: The study, with the outcomes so far.
        grid: Points in rising order.
        runs: Returns the runs at a point.
        stride: The distance of points in decades.
    """
    points, low, high = list(grid), 0, 0
    while all(study.trained(runs(point)) for point in points):
        if high < EXTENSIONS and any(works(study, runs(points[-1]))):
            points, high = [*points, _moved(points[-1], stride)], high + 1
        elif low < EXTENSIONS and any(works(study, runs(points[0]))):
            points, low = [_moved(points[0], -stride), *points], low + 1
        else:
            break
    return points


def _moved(point: float, decades: float) -> float:
    return float(f"{10 ** (math.log10(point) + decades):.2g}")


def range_effect(
    name: str, sides: Mapping[str, Mapping[float, Sequence[bool]]], *, stride: float, threshold: float, part: str
) -> Effect:
    """Return by how many decades more of a setting work with batch normalization than without.

    A range that reaches the end of what was tried may go on: then it is a bound.

    Args:
        name: Of the effect.
        sides: For "none" and "before", whether each point of the grid works, one a seed.
        stride: The decades that each point stands for.
        threshold: Fixed before the run.
        part: What the effect is about.
    """
    bounds = {side: _bounds(points, stride) for side, points in sides.items()}
    pairs = list(zip(bounds["none"], bounds["before"], strict=True))
    neither = all(without[1] == with_it[1] == 0.0 for without, with_it in pairs)
    return Effect(
        name,
        tuple(with_it[0] - without[1] for without, with_it in pairs),
        tuple(with_it[1] - without[0] for without, with_it in pairs),
        threshold,
        part=part,
        unit=" decades",
        obstacle="nothing that was tried works on either side" if neither else "",
    )


def range_sentence(effect: Effect, points: str) -> str:
    """Return the finding about a range in one sentence; `points` are what it is a range of."""
    if effect.obstacle or effect.bound == "unknown":
        why = effect.obstacle or "both reach the end of what was tried"
        return f"In {the(effect.part)}, the ranges of {points} that work cannot be compared: {why}."
    return (
        f"In {the(effect.part)}, the range of {points} that work {wider(effect)} with batch normalization (a decade is "
        "a factor of ten)."
    )


def wider(effect: Effect) -> str:
    """Return how much wider a range is, if that is known: "is wider by 1 decade", "is narrower by 0.5 decades"."""
    value = effect.value()
    if effect.bound == "between":
        return f"is wider by {effect.headline()}"
    bound = "" if effect.bound == "exact" else f"{effect.bound} "
    if value == 0.0:
        return f"is {bound}as wide"
    if value > 0.0:
        return f"is wider by {bound}{quantity(value, effect.unit)}"
    turned = {"at least ": "at most ", "at most ": "at least "}.get(bound, "")
    return f"is narrower by {turned}{quantity(-value, effect.unit)}"


def range_title(effect: Effect) -> str:
    """Return how two ranges compare, for the title of a picture: "wider by 1 decade"."""
    if effect.obstacle or effect.bound == "unknown":
        return "the ranges cannot be compared"
    return wider(effect).removeprefix("is ")


def _bounds(points: Mapping[float, Sequence[bool]], stride: float) -> list[tuple[float, float]]:
    """Return the least and the most decades that work, one pair a seed."""
    tried = list(points)
    usable = [[p for p in tried if points[p][i]] for i in range(len(points[tried[0]]))]
    beyond = [bool(u) and (u[0] == tried[0] or u[-1] == tried[-1]) for u in usable]
    return [(stride * len(u), math.inf if b else stride * len(u)) for u, b in zip(usable, beyond, strict=True)]
