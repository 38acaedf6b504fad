"""The answer the long way: train to the same target at several batch sizes, the learning rate tuned anew for each."""

import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from batchnorm.batch_size.training import HALF_DECADE, Training

FEWEST_SIZES = 5
APART = 1.2  # between two looks at the held-out loss
PATIENCE = 2.0  # more steps than by the law from another size: then a size has no time to arrive
SLACK = 50


@dataclass
class Experiment:
    """Steps to a target, measured.

    Attributes:
        target: The held-out loss to reach, in inference.
        repeats: How many orders of the data each size was tried with; the median counts.
        steps: The median steps of each size at its best learning rate; infinite where it never arrived.
        rates: That learning rate.
        complete: Whether every size that was asked for has been tried.
    """

    target: float
    repeats: int
    steps: dict[int, float] = field(default_factory=dict[int, float])
    rates: dict[int, float] = field(default_factory=dict[int, float])
    complete: bool = False

    def times(self, seconds: Callable[[int], float]) -> dict[int, float]:
        """Return seconds to the target by size, from the seconds of a step."""
        return {size: steps * seconds(size) for size, steps in sorted(self.steps.items())}


def steps_to(
    training: Training, target: float, size: int, rate: float, *, repeat: int, most: int, enough: Callable[[], bool]
) -> float:
    """Train until the held-out loss reaches a target; return the steps, infinity if it takes more than `most`."""
    training.begin(rate, repeat)
    mark = 1
    for step in range(1, most + 1):
        loss = float(training.step(size))
        if not math.isfinite(loss) or enough():
            return math.inf
        if step >= mark or step == most:
            if training.work.held_out_loss() <= target:
                return float(step)
            mark = max(mark + 1, int(mark * APART))
    return math.inf


def _median_steps(
    training: Training, target: float, size: int, rate: float, *, repeats: int, most: int, enough: Callable[[], bool]
) -> float:
    """Return the median over repeats; a rate that loses the first half of them is given up."""
    found: list[float] = []
    for repeat in range(repeats):
        found.append(steps_to(training, target, size, rate, repeat=repeat, most=most, enough=enough))
        if sum(map(math.isinf, found)) > repeats // 2:
            return math.inf
    return statistics.median(found)


def best_rate(
    training: Training, target: float, size: int, start: float, *, repeats: int, most: int, enough: Callable[[], bool]
) -> tuple[float, float]:
    """Return (steps, rate) of the best learning rate: from a guess downhill, half a decade at a time."""

    def tried(rate: float, most: int) -> float:
        return _median_steps(training, target, size, rate, repeats=repeats, most=most, enough=enough)

    best, rate = tried(start, most), start
    for factor in (HALF_DECADE, 1 / HALF_DECADE):
        moved = False
        while True:
            # Not many more steps than the best so far: whoever takes longer has lost.
            steps = tried(rate * factor, most if math.isinf(best) else math.ceil(1.2 * best))
            if steps >= best:
                break
            best, rate, moved = steps, rate * factor, True
        if moved or enough():
            break
    return best, rate


def chosen(sizes: Collection[int], advised: int) -> list[int]:
    """Return the sizes to train at: the advised one, those timed, with every other one left out where there are many.

    >>> chosen([4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048], 96)
    [4, 16, 64, 96, 256, 1024]
    """
    ordered = sorted(sizes)
    some = ordered[len(ordered) % 2 :: 2] if len(ordered) >= 2 * FEWEST_SIZES - 1 else ordered
    return sorted({*some, advised})


def run(
    training: Training,
    experiment: Experiment,
    sizes: Sequence[int],
    *,
    start: int,
    rate: float,
    critical: float,
    most: int,
    enough: Callable[[], bool],
    says: Callable[[str, float], None],
) -> None:
    """Measure the steps to the target at each size, from a middle one outwards; results are noted as they come.

    Args:
        training: What is trained.
        experiment: Target and repeats; takes the results.
        sizes: Batch sizes, ascending.
        start: The one to begin with.
        rate: Its learning rate, for a first guess.
        critical: Bcrit: the learning rate's first guess follows B below it.
        most: Steps to give the first size.
        enough: Whether the time is up.
        says: Told how it goes on, and the share that is done.
    """
    order = sorted(sizes, key=lambda size: abs(math.log(size / start)))
    for done, size in enumerate(order):
        says(f"batches of {size}", done / len(order))
        near = min(experiment.steps, key=lambda known: abs(math.log(known / size)), default=None)
        guess, limit = rate, most
        if near is not None and math.isfinite(experiment.steps[near]):
            guess = experiment.rates[near] * min(size, critical) / min(near, critical)
            guess = experiment.rates[near] * HALF_DECADE ** round(math.log(guess / experiment.rates[near], HALF_DECADE))
            law = (1 + critical / size) / (1 + critical / near)
            limit = math.ceil(PATIENCE * experiment.steps[near] * max(law, near / size, 1.0)) + SLACK
        steps, found = best_rate(
            training, experiment.target, size, guess, repeats=experiment.repeats, most=limit, enough=enough
        )
        if enough():
            return
        experiment.steps[size], experiment.rates[size] = steps, found
    experiment.complete = True
