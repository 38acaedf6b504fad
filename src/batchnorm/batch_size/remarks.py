"""What else there is to say: in numbers that people read, and in sentences that name the way out."""

import math

from batchnorm.batch_size.found import Found
from batchnorm.batch_size.throughput import Throughput, quantile

INPUT_BOUND = 1.1
FEW_RUNS = 5
GROWS = 1.5
UNSTEADY = 1.5  # upper quartile ÷ lower quartile of the seconds of a step
HONEST = (
    "The noise scale says how many steps and seconds a target takes; it knows nothing of curvature or generalisation.",
    "B is no knob for validation accuracy; m is one for regularisation: small groups add noise, in training only.",
)


def number(value: float | None) -> str:
    """Return a number of samples as people read it.

    >>> [number(v) for v in (None, 3.14159, 49.4, 1438, 2.6e6, 215.3e6, float("inf"))]
    ['–', '3.1', '49', '1,438', '2.6 million', '215 million', '∞']
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if value >= 1e6:
        return f"{value / 1e6:.{0 if value >= 1e7 else 1}f} million" if value < 1e9 else f"{value:.1e}"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def size_of(count: float) -> str:
    """Return bytes as people read them.

    >>> size_of(340), size_of(4100), size_of(12.3e9), size_of(-2000)
    ('340 B', '4.1 kB', '12 GB', '−2.0 kB')
    """
    value, unit = abs(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    digits = f"{value:.0f}" if unit == "B" or value >= 10 else f"{value:.1f}"
    return f"{'−' if count < 0 and digits != '0' else ''}{digits} {unit}"


def duration(seconds: float) -> str:
    """Return seconds as people read them.

    >>> duration(2.4e-6), duration(0.0003), duration(1.5), duration(0.0)
    ('2.4 µs', '0.3 ms', '1.5 s', '0 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.1 * size and (seconds >= size or unit == "ms"):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.2g} µs" if seconds > 0 else "0 s"


def remedies(fewest: int, per_process: int, processes: int) -> tuple[str, ...]:
    """Return what helps where fewer samples than m_min are normalised together, first things first."""
    if per_process >= fewest:
        return ()
    told = [f"each process normalises {per_process} samples, and m_min is {fewest}:"]
    if processes > 1:
        told.append("normalise over all processes (SyncBatchNorm)")
    return (
        *told,
        "a larger batch a process, its activations recomputed in the backward (torch.utils.checkpoint)",
        "batch renormalization: BatchNorm(…, renorm=Renorm(…))",
        "group normalization, which knows no batch",
    )


def notes(found: Found, speed: Throughput, size: int, group: int, processes: int) -> tuple[str, ...]:
    """Return what a reader should not miss."""
    return (
        *_of_the_group(found, size, group, processes),
        *_of_the_rows(found, size),
        *_of_the_input(found, speed, size // processes),
        *_of_the_pilot(found),
        *(f"no time for {text}" for text in found.skipped),
        *_of_the_experiment(found),
        *_of_the_timing(found),
    )


def _of_the_timing(found: Found) -> list[str]:
    if min(len(times) for times in found.seconds.values()) < FEW_RUNS:
        return ["few rounds of timing: a larger budget gives steadier seconds"]
    scatter = max(quantile(times, 0.75) / quantile(times, 0.25) for times in found.seconds.values())
    if scatter > UNSTEADY:
        return [f"the same step took up to {scatter:.1f} times as long as at other times: ask again on an idle machine"]
    return []


def _of_the_group(found: Found, size: int, group: int, processes: int) -> list[str]:
    if not found.normalizes:
        return []
    told: list[str] = []
    if group < size // processes:
        told.append(
            f"normalise in groups of {group}, not {size // processes}: BatchNorm(…, virtual_batch_size={group}) keeps "
            "the regularising noise that large groups lose"
        )
    if processes > 1:
        told.append(
            f"more processes and accumulation raise B, never m: each of {processes} normalises its own "
            f"{size // processes}, unless it is synchronised"
        )
    windows = {layer.momentum for layer in found.layers if layer.momentum}
    told += [f"running statistics with momentum {m:g} look back over B/α = {size / m:,.0f} samples" for m in windows]
    return told


def _of_the_rows(found: Found, size: int) -> list[str]:
    left = found.rows % size
    if not left:
        return []
    fewest = found.layers[0].fewest() if found.layers else 1
    told = f"{found.rows:,} rows leave a last batch of {left} (N mod B)"
    if found.normalizes and left < fewest:
        return [f"{told}, fewer than m_min = {fewest}: drop it (drop_last=True)"]
    return [told]


def _of_the_input(found: Found, speed: Throughput, per_process: int) -> list[str]:
    if found.loader_seconds is None:
        return []
    step = speed(per_process) / per_process
    given, used = 1 / found.loader_seconds, 1 / step
    if found.loader_seconds > INPUT_BOUND * step:
        return [
            f"input-bound: the DataLoader gives {given:,.0f} samples a second, a step could use {used:,.0f}: "
            "more workers first, then ask again"
        ]
    return [f"the DataLoader keeps up: it gives {given:,.0f} samples a second, a step uses {used:,.0f}"]


def _of_the_experiment(found: Found) -> list[str]:
    if found.experiment is None or found.experiment.complete:
        return []
    return [f"time to train to the target at {len(found.experiment.steps)} sizes only: a larger budget measures more"]


def _of_the_pilot(found: Found) -> list[str]:
    if found.pilot is None:
        return []
    told: list[str] = []
    known = [n.value for n, _ in found.pilot.weighed]
    if len(known) > 1 and known[-1] > GROWS * known[0]:
        told.append(
            f"the noise scale grew from {number(known[0])} to {number(known[-1])} while the pilot learned: later in "
            "training larger batches pay"
        )
    if found.pilot.dropped:
        told.append(f"{found.pilot.dropped} blocks of gradients were not finite and left out")
    return told
