"""The answer the long way: train to the same target at several batch sizes, the learning rate tuned anew for each.

Running statistics follow the advice: their momentum is such that they forget as many samples ago at every size.
"""

import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from batchnorm.batch_size.training import HALF_DECADE, Training

FEWEST_SIZES = 5
APART = 1.1  # between two looks at the held-out loss
PATIENCE = 2.0  # more steps than by the law from another size: then a size has no time to arrive
SLACK = 50
LOST = 1.2  # times the steps of the best learning rate so far: no need to wait for another
LOWER = (1.0, 0.1)  # where to look for a learning rate at all, as factors of the first guess


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


def chosen(sizes: Collection[int], advised: int) -> list[int]:
    """Return the sizes to train at: the advised one, those timed, with every other one left out where there are many.

    >>> chosen([4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048], 96)
    [4, 16, 64, 96, 256, 1024]
    """
    ordered = sorted(sizes)
    some = ordered[::2] if len(ordered) >= 2 * FEWEST_SIZES - 1 else ordered
    return sorted({*some, advised})


@dataclass
class Race:
    """Runs the experiment.

    Attributes:
        training: What is trained.
        experiment: Target and repeats; takes the results as they come.
        current: The batch size that the layers' momentum was meant for.
        enough: Whether the time is up.
    """

    training: Training
    experiment: Experiment
    current: int
    enough: Callable[[], bool]

    def run(
        self, sizes: Sequence[int], *, start: int, rate: float, critical: float, most: int,
        says: Callable[[str, float], None],
    ) -> None:  # fmt: skip
        """Measure the steps to the target at each size, from a middle one outwards.

        Args:
            sizes: Batch sizes.
            start: The one to begin with.
            rate: Its learning rate, for a first guess.
            critical: Bcrit: the guess follows B below it.
            most: Steps to give the first size.
            says: Told how it goes on, and the share that is done.
        """
        order = sorted(sizes, key=lambda size: abs(math.log(size / start)))
        for done, size in enumerate(order):
            says(f"batches of {size}", done / len(order))
            guess, limit = self._guess(size, critical) or (rate, most)
            steps, best = self.best_rate(size, guess, limit)
            if self.enough():
                return
            self.experiment.steps[size], self.experiment.rates[size] = steps, best
        self.experiment.complete = True

    def _guess(self, size: int, critical: float) -> tuple[float, int] | None:
        """Return a learning rate and the most steps worth a try, from the nearest size that has arrived."""
        known = {b: steps for b, steps in self.experiment.steps.items() if math.isfinite(steps)}
        if not known:
            return None
        near = min(known, key=lambda b: abs(math.log(b / size)))
        decades = round(math.log(min(size, critical) / min(near, critical), HALF_DECADE))
        law = (1 + critical / size) / (1 + critical / near)
        most = math.ceil(PATIENCE * known[near] * max(law, near / size, 1.0)) + SLACK
        return self.experiment.rates[near] * HALF_DECADE**decades, most

    def best_rate(self, size: int, guess: float, most: int) -> tuple[float, float]:
        """Return (steps, rate) of the best learning rate: from a guess downhill, half a decade at a time."""
        best, rate = math.inf, guess
        for factor in LOWER:
            rate = guess * factor
            best = self._median_steps(size, rate, most)
            if math.isfinite(best) or self.enough():
                break
        for factor in (HALF_DECADE, 1 / HALF_DECADE):
            moved = False
            while not self.enough():
                steps = self._median_steps(size, rate * factor, min(most, math.ceil(LOST * min(best, most))))
                if steps >= best:
                    break
                best, rate, moved = steps, rate * factor, True
            if moved:
                break
        return best, rate

    def _median_steps(self, size: int, rate: float, most: int) -> float:
        """Return the median over repeats; a rate that loses more than half of them is given up."""
        repeats, found = self.experiment.repeats, list[float]()
        for repeat in range(repeats):
            found.append(self._steps(size, rate, repeat, most))
            if sum(map(math.isinf, found)) > repeats // 2:
                return math.inf
        return statistics.median(found)

    def _steps(self, size: int, rate: float, repeat: int, most: int) -> float:
        """Train until the held-out loss reaches the target; return the steps, infinity if it takes more than `most`."""
        self.training.begin(rate, repeat)
        self.training.normalise_as_advised(self.current, size)
        mark = 1
        for step in range(1, most + 1):
            if not math.isfinite(float(self.training.step(size))) or self.enough():
                return math.inf
            if step >= mark or step == most:
                if self.training.work.held_out_loss() <= self.experiment.target:
                    return float(step)
                mark = max(mark + 1, int(mark * APART))
        return math.inf
