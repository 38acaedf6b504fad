"""The four limits, each with its interval and a sentence that says what was measured."""

import math
from typing import Any

from batchnorm.batch_size import remarks
from batchnorm.batch_size.advice import Limit, LimitName
from batchnorm.batch_size.found import Found
from batchnorm.batch_size.gradient_noise import NoiseScale
from batchnorm.batch_size.memory import WORST_FIT, Memory
from batchnorm.batch_size.throughput import Throughput, fit, quantile

BEYOND = 4.0  # times the largest size timed: farther away a line says nothing
HIGH, LOW = 0.75, 0.25  # quantiles of the step times between which Bhalf may lie


def limits(
    found: Found, speed: Throughput, noise: NoiseScale | None, *, group: int, processes: int
) -> dict[LimitName, Limit]:
    """Return the four limits; `group` is the m that is advised."""
    return {
        "memory": _memory_limit(found.memory, found.rows, processes),
        "throughput": _throughput_limit(found, speed, processes),
        "gradient_noise": _noise_limit(found, noise),
        "statistics_noise": _statistics_limit(found, group),
    }


def _memory_limit(memory: Memory, rows: int, processes: int) -> Limit:
    largest = memory.largest * processes
    if not memory.bytes:
        return Limit(largest or None, largest or None, None, True, "not measured; the largest size that has run")
    fixed, per_sample = memory.line
    high = memory.projected * processes
    if memory.failed is not None:
        high = min(high, (memory.failed - 1) * processes)
    is_bound = memory.failed is None and 2 * largest <= high
    told = [
        f"{remarks.size_of(fixed)} + B · {remarks.size_of(per_sample)} ({memory.source})",
        f"off by {memory.error:.1%} at most",
        f"{remarks.size_of(memory.available)} free",
    ]
    if memory.failed is not None:
        told.append(f"a step of {memory.failed * processes:,} {'failed' if memory.failure else 'ran out of memory'}")
    told.append(f"{largest:,} has run" + (", all the rows there are" if largest >= rows else ""))
    if memory.error > WORST_FIT:
        told.append("no line: what it says of other sizes is rough")
    if is_bound and largest < rows:
        told.append(f"by the line {remarks.number(high)} would fit")
    return Limit(largest, largest, high, is_bound, "; ".join(told))


def _throughput_limit(found: Found, speed: Throughput, processes: int) -> Limit:
    line = f"t(B) = {remarks.duration(speed.fixed)} + B · {remarks.duration(speed.per_sample)}"
    fitted = f"{line}, off by {speed.error:.0%} at most"
    said = fitted if speed.is_line else f"measured times (no line fits: off by {speed.error:.0%})"
    if len(speed.sizes) == 1:
        return Limit(None, None, None, False, "not measured: a single size was timed")
    if speed.half > BEYOND * speed.sizes[-1]:
        largest = float(speed.sizes[-1] * processes)
        return Limit(largest, largest, None, True, f"a larger batch costs hardly more time so far; {said}")
    ends = [fit({b: [quantile(times, q)] for b, times in found.seconds.items()}).half for q in (LOW, 0.5, HIGH)]
    ends = [end * processes for end in (*ends, speed.half)]
    smaller = ", or from a size still smaller" if speed.half <= speed.sizes[0] else ""
    return Limit(
        ends[-1], min(ends), max(ends), False, f"from here on the machine is busy, half of its best{smaller}; {said}"
    )


def _noise_limit(found: Found, noise: NoiseScale | None) -> Limit:
    if noise is None:
        return Limit(None, None, None, False, "not measured")
    pilot: Any = found.pilot
    stages = pilot.useful
    where = (
        "at the weights as they are" if len(stages) == 1
        else f"median over a pilot run, step {stages[0].step} to {stages[-1].step}, weighed by what it learned"
    )  # fmt: skip
    said = f"beyond it a larger batch saves hardly any steps; tr Σ/|G|² in groups of {found.group}, {where}"
    high = None if math.isinf(noise.high) else noise.high
    return Limit(noise.value, noise.low, high, noise.is_bound, said)


def _statistics_limit(found: Found, group: int) -> Limit:
    if not found.normalizes:
        return Limit(None, None, None, False, "nothing in this model normalises by the batch")
    if not found.layers:
        return Limit(None, None, None, False, "not measured")
    worst = found.layers[0]
    said = (
        f"fewer make the mean of a batch too noisy (0.25 σ); noisiest is layer {worst.name!r}, where a sample is worth "
        f"{remarks.number(worst.per_sample)} values: shift noise {worst.shift(group):.2g} σ at m = {group}"
    )
    if (scale := worst.scale(group)) is not None:
        said += f", scale noise {scale:.2g}"
    return Limit(worst.fewest(), worst.fewest(worst.high), worst.fewest(worst.low), False, said)
