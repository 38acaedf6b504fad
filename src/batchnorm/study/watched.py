"""Runs that a claim only watches, at one learning rate each, and what their probes have measured, seed by seed."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from batchnorm.study.curves import SIDES
from batchnorm.study.design import LEAST_WAY, Range, Study
from batchnorm.study.findings import Effect, the
from batchnorm.study.networks import Placement
from batchnorm.study.training import Spec

HALFWAY = 0.5
Probed = list[list[dict[str, Any]]]  # one a seed: what the probe measured, step by step


def units(study: Study, spec: Spec) -> list[list[Spec]]:
    """Return the runs of a spec as units to train: the seeds of the first look, and those that each later one adds."""
    return study.units(spec)


def probed(study: Study, spec: Spec) -> Probed:
    """Return what the probe of a run measured, one list a seed."""
    return [study.lab[s].probed for s in study.seeds(spec)]


def unlearned(study: Study, specs: Mapping[Placement, Spec]) -> str:
    """Return why a comparison while training cannot be decided: a side that does not learn; "" if both do.

    A side learns if the median of its last scores, over the seeds of the first look, is halfway from guessing to the
    best score that runs reach. Where nothing is learned, nothing moves, and neither gradients nor distributions say
    anything about training.
    """
    first = study.at(study.first)
    words: list[str] = []
    for side, spec in specs.items():
        pairs = zip(study.outcomes(first.seeds(spec)), first.ranges(), strict=True)
        if not statistics.median(_way(o.test[-1], r) for o, r in pairs) >= HALFWAY:
            words.append(
                f"{SIDES[side][0]} it, the network does not get halfway to the best score in {spec.steps} steps"
            )
    return " and ".join(words)


def _way(score: float, reached: Range) -> float:
    """Return the share of the way to the best score; a run that has diverged, or has no way to go, gets nowhere."""
    way = reached.test - reached.guess
    return (score - reached.guess) / way if math.isfinite(score) and way >= LEAST_WAY else -math.inf


def typical(looks: Iterable[Mapping[str, Any]], key: str) -> float:
    """Return the median of a measure over the steps at which a run was looked at; NaN for a run that has diverged.

    >>> typical([{"range": 1.0}, {"range": 3.0}, {"range": float("nan")}], "range")
    3.0
    >>> typical([{"range": 1.0}, {"range": float("nan")}, {"range": float("inf")}], "range")
    nan
    """
    values = [look[key] if math.isfinite(look[key]) else math.inf for look in looks if key in look]
    middle = statistics.median(values) if values else math.nan
    return middle if math.isfinite(middle) else math.nan


def by_step(seeds: Probed, key: str) -> dict[str, list[float]]:
    """Return the median of a measure over the seeds whose runs have not diverged, for each step it was measured at."""
    columns: dict[int, list[float]] = {}
    for look in (look for looks in seeds for look in looks if key in look):
        columns.setdefault(look["step"], []).extend([look[key]] if math.isfinite(look[key]) else [])
    medians = {step: statistics.median(values) for step, values in sorted(columns.items()) if values}
    return {"steps": [float(step) for step in medians], "median": list(medians.values())}


def quotients(name: str, without: Sequence[float], with_it: Sequence[float], threshold: float, **more: Any) -> Effect:
    """Return the effect of measures without ÷ with, seed by seed; a run that has diverged (NaN) says nothing.

    >>> quotients("", [2.0, math.nan, 1.0], [1.0, 1.0, 0.0], 1.5).most
    (2.0, inf, inf)
    """
    samples = (
        a / b if math.isfinite(a) and math.isfinite(b) and b > 0.0 else math.nan
        for a, b in zip(without, with_it, strict=True)
    )
    return Effect.of(name, samples, threshold, unit="×", **more)


def diverged(part: str, sides: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a sentence for each side of a network, "without" or "with", whose runs have diverged in part."""
    counts = {word: sum(map(math.isnan, values)) for word, values in sides.items()}
    return [
        f"In {the(part)}, {count} of {len(sides[word])} runs {word} batch normalization diverged, and say nothing."
        for word, count in counts.items()
        if count
    ]
