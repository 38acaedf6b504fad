"""Judge what has been measured: the four limits, the choice, and how sure it is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

from batchnorm.batch_size import decision, remarks
from batchnorm.batch_size.advice import Advice, Binding, Confidence
from batchnorm.batch_size.decision import Objective, Plateau
from batchnorm.batch_size.found import Found, details
from batchnorm.batch_size.gradient_noise import NoiseScale
from batchnorm.batch_size.limits import limits
from batchnorm.batch_size.memory import Memory
from batchnorm.batch_size.throughput import Throughput, fit, quantile
from batchnorm.batch_size.training import Pilot

UNSURE = 3.0  # times: as far as steps counted in trainings lay from the prediction
ENDLESS = 1e12  # stands for a noise scale without an upper end
USUAL_BATCH = 32
SURE, FAIR = 1.15, 1.6  # times the least time, at worst


@dataclass(frozen=True)
class _Setting:
    """What the choice is made from, in samples over all processes.

    Attributes:
        critical: Bcrit; where it was not measured, Bhalf stands for it.
        seconds: t(B).
        smallest: The smallest size worth a thought.
        largest: The largest that has run.
        fewest: m_min; 1 without batch normalization.
    """

    critical: float
    seconds: Callable[[float], float]
    smallest: float
    largest: int
    fewest: int


@dataclass(frozen=True)
class Choice:
    """What is to be chosen, and from what.

    Attributes:
        objective: "time" or "compute".
        candidates: The sizes to choose from, ascending; None: hardware-friendly ones.
        group: m, if it is fixed.
        processes: How many train together.
        only_ran: Whether only sizes may be named that have run; until the last of them has, wishes are allowed.
    """

    objective: Objective = "time"
    candidates: list[int] | None = None
    group: int | None = None
    processes: int = 1
    only_ran: bool = False


def judge(found: Found, choice: Choice) -> Advice:
    """Return the advice that follows from what was found; at least one size was timed."""
    processes = choice.processes
    speed = fit(found.seconds)
    noise = along(found.pilot) if found.pilot else None
    setting = _setting(found, speed, speed.half * processes if noise is None else noise.value, processes)
    where = _plateau(setting)
    size, binding = _choose(setting, where, choice, found, speed)
    per_process = max(size // processes, 1)
    together = decision.group_size(per_process, setting.fewest) if found.normalizes else per_process
    together = min(choice.group, per_process) if choice.group else together
    confidence, because, doubts = _confidence(
        found, speed, noise, _worst(size, setting, noise, choice.objective), choice.objective
    )
    known = limits(found, speed, noise, group=together, processes=processes)
    if binding in known and known[binding].value is None:  # what was not measured decides nothing
        binding = "budget"
    current = found.current * processes if found.current else USUAL_BATCH
    measured = found.experiment.times(speed.least) if found.experiment else {}
    return Advice(
        batch_size=size,
        group_size=together,
        binding=binding,
        limits=known,
        objective=choice.objective,
        best=where.best,
        plateau=(where.low, where.high),
        confidence=confidence,
        because=because,
        doubts=tuple(doubts),
        between=_between(found, speed, noise, choice),
        measured_on=found.about,
        current=current,
        learning_rate_factor=noise and decision.rate_factor(current, size, noise.value, adaptive=found.adaptive),
        learning_rate=_found_rate(found, noise, size),
        momentum=_momenta(found, current, size),
        remedies=remarks.remedies(setting.fewest, together, processes) if found.normalizes else (),
        notes=remarks.notes(found, speed, size, group=together, processes=processes),
        seconds=dict(zip(speed.sizes, speed.seconds, strict=True)),
        predicted=_relative({b: _time(b, setting) for b in sorted({size, *(b * processes for b in speed.sizes)})}),
        measured=_relative({b * processes: t for b, t in measured.items()}),
        processes=processes,
        interrupted=found.interrupted,
        details=details(found, speed),
    )


def _found_rate(found: Found, noise: NoiseScale | None, size: int) -> float | None:
    """Return the learning rate of plain SGD that was found, carried over to B; None if the optimizer is the user's."""
    if noise is None or found.pilot is None or found.own or not found.pilot.rate or found.pilot.failed:
        return None
    return found.pilot.rate * decision.rate_factor(found.group, size, noise.value, adaptive=False)


def _time(size: float, setting: _Setting) -> float:
    return (1.0 + setting.critical / size) * setting.seconds(size)


def _relative(times: Mapping[int, float]) -> dict[int, float]:
    least = min((t for t in times.values() if math.isfinite(t)), default=1.0)  # of none, none is made up
    return {size: t / least for size, t in sorted(times.items())}


def along(pilot: Pilot) -> NoiseScale | None:
    """Return the median over the stages of a pilot, weighed by what each learned, and the range of all."""
    weighed = pilot.weighed
    if not weighed:
        return None
    ordered = sorted(weighed, key=lambda pair: pair[0].value)
    half = sum(weight for _, weight in weighed) / 2
    sums = accumulate(weight for _, weight in ordered)
    middle = next(n for (n, _), so_far in zip(ordered, sums, strict=True) if so_far >= half)
    low, high = min(n.low for n, _ in weighed), max(n.high for n, _ in weighed)
    return NoiseScale(middle.value, low, high, middle.is_bound, middle.signal, middle.noise, middle.blocks)


def _plateau(setting: _Setting) -> Plateau:
    return decision.plateau(setting.critical, setting.seconds, setting.smallest, 4.0 * setting.largest)


def _between(found: Found, speed: Throughput, noise: NoiseScale | None, choice: Choice) -> tuple[int, int]:
    """Return the smallest and the largest choice by what was measured, wherever in its intervals the truth lies."""
    usual = (fit({size: [quantile(times, q)] for size, times in found.seconds.items()}) for q in (0.5, 0.75))
    sizes: list[int] = []
    for timed in (speed, *usual):
        half = timed.half * choice.processes
        for critical in (half,) if noise is None else (noise.low, noise.value, noise.high):
            setting = _setting(found, timed, critical, choice.processes)
            sizes.append(_choose(setting, _plateau(setting), choice, found, timed)[0])
    return min(sizes), max(sizes)


def _setting(found: Found, speed: Throughput, critical: float, processes: int) -> _Setting:
    fewest = found.layers[0].fewest() if found.layers else 1
    largest = min(found.memory.largest * processes, found.rows)
    smallest = min(float(speed.sizes[0] * processes), largest)
    return _Setting(min(max(critical, 1e-3), ENDLESS), lambda b: speed(b / processes), smallest, largest, fewest)


def _choose(
    setting: _Setting,
    where: Plateau,
    choice: Choice,
    found: Found,
    speed: Throughput,
) -> tuple[int, Binding]:
    """Return B and the limit that decides it."""
    processes = choice.processes
    ran = {size * processes for size in found.memory.ran}
    allowed = sorted(ran) if choice.only_ran else None
    if choice.candidates is not None:
        allowed = [c for c in choice.candidates if c in ran] or sorted(ran)
    low, high = where.low, where.high
    half = speed.half * processes
    binding: Binding = "gradient_noise" if setting.critical < half else "throughput"
    if choice.objective == "compute":
        high = min(high, max(decision.COMPUTE_SHARE * setting.critical, setting.smallest))
        low, binding = min(setting.smallest, high), "gradient_noise"  # any size below is as good: the largest of them
    group = choice.group or (max(setting.fewest, decision.SMALLEST_GROUP) if found.normalizes else 1)
    least = min(group * processes, setting.largest)
    if decision.pick(low, high, allowed) < least:
        asked_or_unheard = choice.group or (found.listened and not found.layers)
        binding = "group" if asked_or_unheard else "statistics_noise"
        low, high = decision.reaching(least, allowed)
    if high > setting.largest:
        wanted = decision.pick(low, high, choice.candidates)
        low, high = min(low, setting.largest), float(setting.largest)
        if wanted > setting.largest:
            binding = "memory" if _is_full(found.memory, setting.largest, processes) else "data"
    size = decision.pick(low, high, allowed)
    return max(size // processes, 1) * processes if allowed is None else size, binding


def _is_full(memory: Memory, largest: int, processes: int) -> bool:
    return memory.failed is not None or memory.projected * processes < 2 * largest


def _worst(size: int, setting: _Setting, noise: NoiseScale | None, objective: Objective) -> float:
    """Return how many times the least time (or compute) B can take, wherever in its interval the noise scale lies."""
    if noise is None:
        return math.inf
    ratios: list[float] = []
    for critical in (noise.low / UNSURE, noise.high * UNSURE):
        here = replace(setting, critical=min(max(critical, 1e-3), ENDLESS))
        if objective == "compute":
            ratios.append(1.0 + size / here.critical)  # samples to the target, S·B, over their least
            continue
        best = decision.plateau(here.critical, here.seconds, here.smallest, here.largest).best
        ratios.append(_time(size, here) / _time(best, here))
    return max(ratios)


def _confidence(
    found: Found, speed: Throughput, noise: NoiseScale | None, worst: float, objective: Objective
) -> tuple[Confidence, str, list[str]]:
    """Return how sure the choice is, what that rests on, and why it is not surer where it is low."""
    doubts = remarks.doubts(found, speed, noise is not None)
    if found.interrupted:
        doubts = [f"interrupted while measuring {found.interrupted}: this is what is known so far", *doubts]
    if noise is None:
        return "low", "without the noise of gradients Bcrit is taken to be Bhalf", doubts
    ends = remarks.number(noise.low / UNSURE), remarks.number(noise.high * UNSURE)
    said = (
        f"for any noise scale from {ends[0]} to {ends[1]}, {UNSURE:g} times beyond what was measured, this "
        f"size takes at most {worst:.2f} times the least {objective} by the model"
    )
    if worst > FAIR:
        doubts.append(f"within the interval of the noise scale it may take {worst:.2f} times the least {objective}")
    if doubts:
        return "low", said, doubts
    return ("high" if worst <= SURE and not remarks.of_the_timing(found) else "medium"), said, []


def _momenta(found: Found, current: int, size: int) -> dict[float, float]:
    known = {layer.momentum for layer in found.layers if layer.momentum is not None}
    return {m: decision.momentum_for(m, current, size) for m in sorted(known)}
