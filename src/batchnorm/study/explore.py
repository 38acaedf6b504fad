"""What the report lets its readers explore: the curves at every learning rate, and steps and seconds by batch size."""

import statistics
from collections.abc import Mapping
from typing import Any

from batchnorm.study.curves import median_curve
from batchnorm.study.design import SIDES, Study
from batchnorm.study.findings import Finding


def curves(study: Study) -> dict[str, Any]:
    """Return, network by network, the median test curves of both sides at each learning rate of the core sweeps."""
    made: dict[str, Any] = {}
    for network in study.networks:
        sides = {side: study.tune(side, network) for side in SIDES}
        if not all(tuning.settled for tuning in sides.values()):
            continue
        made[network] = {
            "name": study.named(network),
            "score": study.metric.name,
            "rates": sorted({rate for tuning in sides.values() for rate in tuning.by_rate}),
            "best": {side: tuning.rate for side, tuning in sides.items()},
            "sides": {
                side: {
                    f"{rate:g}": {k: v for k, v in median_curve(outcomes).items() if k in ("steps", "median")}
                    for rate, outcomes in tuning.by_rate.items()
                }
                for side, tuning in sides.items()
            },
            "chosen": {side: median_curve(tuning.outcomes) for side, tuning in sides.items()},
            "goal": study.goal(),
            "guess": study.guess,
        }
    return made


def sizes(findings: Mapping[str, Finding]) -> dict[str, Any]:
    """Return the median steps to the goal by batch size; the seconds are in timings.json."""
    finding = findings.get("batch-size")
    steps = finding.numbers.get("steps", {}) if finding is not None else {}
    return {"sizes": [int(size) for size in steps], "steps": [statistics.median(s) for s in steps.values()]}
