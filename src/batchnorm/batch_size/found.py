"""What has been measured so far, by one process or put together by all."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from batchnorm.batch_size.experiment import Experiment
from batchnorm.batch_size.memory import Memory
from batchnorm.batch_size.statistics_noise import LayerNoise
from batchnorm.batch_size.throughput import Throughput
from batchnorm.batch_size.training import Pilot, Stage


@dataclass
class Found:
    """Measurements; whatever is empty or None has not been made.

    Attributes:
        rows: N, the rows of the data.
        memory: Of one process.
        seconds: Of every step that was timed, by the batch size of one process.
        pilot: Where the gradient noise was measured.
        group: m, at which it was.
        layers: The layers of batch normalization, the noisiest first.
        normalizes: Whether there are any that normalise by the batch.
        experiment: With `measure=True`.
        loader_seconds: Of one sample from the DataLoader; None without one.
        current: The DataLoader's batch size, if it has one.
        own: Whether the optimizer is the user's.
        adaptive: Whether the optimizer divides by the size of the gradient, as Adam does.
        listened: Whether layers of batch normalization have been listened to.
        compiled: Whether a part of the model has been compiled.
        budget_s: Seconds that all of it may take.
        about: What is measured: data, network, loss, optimizer, device.
        interrupted: What was being measured when Ctrl-C came.
        skipped: What the budget had no time for.
    """

    rows: int
    memory: Memory
    seconds: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    pilot: Pilot | None = None
    group: int = 0
    layers: list[LayerNoise] = field(default_factory=list[LayerNoise])
    normalizes: bool = False
    experiment: Experiment | None = None
    loader_seconds: float | None = None
    current: int | None = None
    own: bool = False
    adaptive: bool = False
    listened: bool = False
    compiled: bool = False
    budget_s: float = 60.0
    about: dict[str, str] = field(default_factory=dict[str, str])
    interrupted: str = ""
    skipped: list[str] = field(default_factory=list[str])


def together(parts: Sequence[Found]) -> Found:
    """Return what all processes found: the least memory, the slowest steps, the noise of all groups."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    sizes = set(first.seconds).intersection(*(set(p.seconds) for p in parts))
    memories = [p.memory for p in parts]
    failed = min((m.failed for m in memories if m.failed is not None), default=None)
    memory = Memory(first.memory.source, min(m.available for m in memories), max(memories, key=_hunger).bytes)
    memory.failed, memory.ran = failed, set.intersection(*(m.ran for m in memories))
    memory.failure = next((m.failure for m in memories if m.failed == failed), "")
    layers = [layer for p in parts for layer in p.layers]
    noisiest = {layer.name: layer for layer in sorted(layers, key=lambda layer: -layer.per_sample)}
    return Found(
        rows=first.rows,
        memory=memory,
        seconds={s: max((p.seconds[s] for p in parts), key=min) for s in sizes},
        pilot=_pilot([p.pilot for p in parts if p.pilot is not None]),
        group=first.group,
        layers=sorted(noisiest.values(), key=lambda layer: layer.per_sample),
        normalizes=first.normalizes,
        experiment=first.experiment,
        loader_seconds=max((p.loader_seconds for p in parts if p.loader_seconds is not None), default=None),
        current=first.current,
        own=first.own,
        adaptive=first.adaptive,
        listened=any(p.listened for p in parts),
        compiled=first.compiled,
        budget_s=first.budget_s,
        about=first.about,
        interrupted=next((p.interrupted for p in parts if p.interrupted), ""),
        skipped=sorted({s for p in parts for s in p.skipped}),
    )


def _hunger(memory: Memory) -> float:
    return max(memory.bytes.values(), default=-math.inf)


def _pilot(pilots: Sequence[Pilot]) -> Pilot | None:
    """Put together the stages of the processes that trained at the first one's learning rate."""
    if not pilots:
        return None
    pilots = [p for p in pilots if p.rate == pilots[0].rate]
    stages = [
        Stage(
            same[0].step,
            statistics.fmean(s.loss for s in same),
            tuple(b for s in same for b in s.blocks),
            sum(s.dropped for s in same),
            statistics.fmean(s.trained for s in same),
        )
        for same in zip(*(p.stages for p in pilots), strict=False)
    ]
    return Pilot(pilots[0].rate, stages, any(p.failed for p in pilots))


def details(found: Found, speed: Throughput) -> dict[str, Any]:
    """Return every number that was measured, as plain data."""
    memory, pilot, experiment = found.memory, found.pilot, found.experiment
    line = memory.line if memory.bytes else (None, None)
    return {
        "rows": found.rows,
        "group": found.group,
        "memory": {
            "source": memory.source, "available": memory.available, "fixed": line[0], "per_sample": line[1],
            "bytes": memory.bytes, "ran": sorted(memory.ran), "failed": memory.failed,
            "failure": memory.failure,
        },
        "throughput": {
            "fixed": speed.fixed, "per_sample": speed.per_sample, "error": speed.error, "is_line": speed.is_line,
            "half": speed.half,
        },
        "gradient_noise": pilot and {
            "rate": pilot.rate,
            "target": pilot.target,
            "stages": [
                {"step": s.step, "loss": s.loss, "useful": s in pilot.useful} | (vars(s.noise) if s.noise else {})
                for s in pilot.stages
            ],
        },
        "layers": [
            vars(layer) | {"fewest": layer.fewest(), "bessel_gap": layer.bessel_gap(found.group)}
            for layer in found.layers
        ],
        "experiment": experiment and {
            "target": experiment.target, "repeats": experiment.repeats, "complete": experiment.complete,
            "steps": experiment.steps, "rates": experiment.rates,
        },
    }  # fmt: skip
