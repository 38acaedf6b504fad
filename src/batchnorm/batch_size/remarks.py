"""What else there is to say: in numbers that people read, and in sentences that name the way out."""

import math

from batchnorm.batch_size.experiment import FEWEST_SIZES
from batchnorm.batch_size.found import Found
from batchnorm.batch_size.throughput import Throughput, quantile

INPUT_BOUND = 1.1
FEW_RUNS = 5
GROWS = 1.5
UNSTEADY, BUSY = 1.5, 2.0  # upper quartile ÷ least of the seconds of a step: worth a word, and beyond belief
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


def remedies(fewest: int, group: int, processes: int) -> tuple[str, ...]:
    """Return what helps where fewer samples than m_min are normalised together, first things first.

    >>> remedies(16, 64, 1), len(remedies(16, 4, 2))
    ((), 4)
    """
    if group >= fewest:
        return ()
    ways = [
        *(["normalise over all processes (SyncBatchNorm)"] if processes > 1 else []),
        "a larger batch, its activations recomputed in the backward (torch.utils.checkpoint)",
        "batch renormalization: batchnorm.torch.BatchNorm(…, renorm=Renorm(…))",
        "group normalization, which knows no batch",
    ]
    first = (
        f"m = {group} is below m_min = {fewest}, the statistics are noisy. What helps, first things first: {ways[0]}"
    )
    return (first, *(f"then: {way}" for way in ways[1:]))


def doubts(found: Found, speed: Throughput, noise_known: bool) -> list[str]:
    """Return why the answer cannot be trusted, whatever the numbers say."""
    told: list[str] = []
    single = len(found.seconds) == 1
    if not noise_known:
        more = f"a budget of {max(120.0, 2 * found.budget_s):g} seconds may do"
        missing = "neither the noise of gradients nor the time of more than one size was measured" if single else (
            "the noise of gradients was not measured"
        )  # fmt: skip
        in_time = found.interrupted or (found.pilot and found.pilot.failed)
        told.append(missing if in_time else f"not enough time, {missing}: {more}")
    if slowed(found) >= BUSY:
        told.append(
            f"the same step took {slowed(found):.1f} times as long at other times: ask again on an idle machine"
        )
    if not single and not speed.is_line:
        told.append(f"no line fits the seconds of a step, the best is off by {speed.error:.0%}")
    if found.pilot and found.pilot.failed:
        rate = "that of the optimizer" if found.own else f"{found.pilot.rate:g}"
        told.append(f"training diverged, or learned nothing, at the learning rate tried last ({rate})")
    if found.pilot and any(math.isinf(noise.value) for noise, _ in found.pilot.weighed):
        told.append("the gradients are zero: the loss does not depend on the weights")
    if found.pilot and found.pilot.dropped:
        told.append(f"{found.pilot.dropped} blocks of gradients were not finite: look for NaN in the data")
    if single and noise_known:
        told.append("a single size was timed, which says nothing of others")
    return told


def slowed(found: Found) -> float:
    """Return how many times its least the upper quartile of the seconds of a step is, of the size where it is most."""
    return max(quantile(times, 0.75) / min(times) for times in found.seconds.values())


def notes(found: Found, speed: Throughput, size: int, *, group: int, processes: int) -> tuple[str, ...]:
    """Return what a reader should not miss."""
    return (
        *_of_the_group(found, size, group=group, processes=processes),
        *_of_the_rows(found, size),
        *_of_the_input(found, speed, size // processes),
        *_of_the_pilot(found),
        *_of_the_failure(found, processes),
        *(f"no time for {text}" for text in found.skipped),
        *_of_the_experiment(found),
        *of_the_timing(found),
    )


def of_the_timing(found: Found) -> list[str]:
    """Return why the seconds may be off."""
    if min(len(times) for times in found.seconds.values()) < FEW_RUNS:
        return ["few rounds of timing: a larger budget gives steadier seconds"]
    if UNSTEADY < slowed(found) < BUSY:  # beyond that it is a doubt
        return [f"the same step took {slowed(found):.1f} times as long at other times: the least counts"]
    return []


def _of_the_failure(found: Found, processes: int) -> list[str]:
    memory = found.memory
    if not memory.failure or memory.failed is None:
        return []
    return [
        f"a step of {memory.failed * processes:,} samples failed: {memory.failure}; this is advice among sizes up to "
        f"{memory.largest * processes:,}, which ran: mend that, and ask again"
    ]


def _of_the_group(found: Found, size: int, *, group: int, processes: int) -> list[str]:
    if not found.normalizes:
        return []
    told: list[str] = []
    if not found.layers and found.listened:
        why = (
            "ask with the model as it is before torch.compile" if found.compiled
            else "the training steps of the model do not call any"
        )  # fmt: skip
        told.append(f"no layer of batch normalization was heard: {why}")
    if found.layers and found.layers[0].fewest() <= group < size // processes:
        told.append(
            f"normalise in groups of {group}, not {size // processes}, to keep the regularising noise that large "
            f"groups lose: batchnorm.torch.BatchNorm(…, virtual_batch_size={group})"
        )
    if processes > 1:
        told.append(
            f"more processes and accumulation raise B, never m: each of {processes} normalises its own "
            f"{size // processes}, unless it is synchronised"
        )
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
            f"input-bound: the data come at {given:,.0f} samples a second, a step could use {used:,.0f}: make them "
            "come faster first (more workers, say), for no batch size helps; then ask again"
        ]
    return [f"the data keep up: they come at {given:,.0f} samples a second, a step uses {used:,.0f}"]


def _of_the_experiment(found: Found) -> list[str]:
    if found.experiment is None:
        return []
    count = len(found.experiment.steps)
    if not found.experiment.complete:
        return [f"time to train to the target at {count} sizes only: a larger budget measures more"]
    return [f"{count} sizes were trained at: name five or more to see the curve"] if count < FEWEST_SIZES else []


def _of_the_pilot(found: Found) -> list[str]:
    if found.pilot is None:
        return []
    known = [n.value for n, _ in found.pilot.weighed]
    if len(known) < 2 or known[-1] <= GROWS * known[0]:
        return []
    return [
        f"the noise scale grew from {number(known[0])} to {number(known[-1])} while the pilot learned: later in "
        "training larger batches pay"
    ]
