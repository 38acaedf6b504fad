"""The measurements in their order, each within its share of the time."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils.data import RandomSampler

from batchnorm.batch_size import experiment, memory, ranks, training
from batchnorm.batch_size.advice import Advice
from batchnorm.batch_size.budget import Budget
from batchnorm.batch_size.decision import SMALLEST_GROUP
from batchnorm.batch_size.experiment import Experiment, Race
from batchnorm.batch_size.found import Found, together
from batchnorm.batch_size.gradient_noise import BLOCKS, GROUPS, Aggregate, GroupGradients
from batchnorm.batch_size.judge import USUAL_BATCH, Choice, judge
from batchnorm.batch_size.memory import Memory, Meter
from batchnorm.batch_size.statistics_noise import Listener
from batchnorm.batch_size.training import Training
from batchnorm.batch_size.work import FEWEST_ROWS, MOST_HELD_OUT, Work
from batchnorm.errors import ArgumentError
from batchnorm.models.preserve import held_generators

ROUNDS, MOST_ROUNDS = 15, 200  # of timing: so many, and more until
LONG_ENOUGH = 2.0  # seconds have passed: whatever else runs comes in bursts
WARM_UP = 2
SMALLEST, LARGEST = 4, 1 << 16
USUAL = 64  # m, while the gradient noise is measured
MOST_STEPS = 3000
SWEEP_SHARE = 0.25  # of the time for the gradient noise
HELD_OUT_SHARE = 0.03  # of it, for one look at the held-out rows
MOST_SHUFFLED = 10**7  # rows: a DataLoader draws the order of all of them ahead of its first batch
ADAPTIVE = ("adam", "rmsprop", "adagrad", "adadelta", "adafactor", "lion", "radam", "nadam")


class Course:
    """The measurements in their order; each notes what it finds as it finds it, so that none of it is lost."""

    def __init__(self, work: Work, trained: Training, meter: Meter, budget: Budget) -> None:
        self._work, self._training, self._meter, self._budget = work, trained, meter, budget
        self._processes = ranks.processes()
        self._draws: list[float] = []  # seconds of making one sample ready
        self.found = Found(len(work.samples), Memory(meter.source, meter.available()))
        self.found.normalizes = any(
            isinstance(m, _BatchNorm) and m.training and not getattr(m, "frozen", False) for m in work.model.modules()
        )
        self.found.compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl for m in work.model.modules())  # pyright: ignore
        self.found.budget_s = budget.seconds
        loader = work.samples.loader
        if loader is not None:
            self.found.current = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        self.found.own = trained.own
        kind = type(trained.optimizer).__name__.lower()
        self.found.adaptive = any(name in kind for name in ADAPTIVE)

    def prepare(self, choice: Choice, aggregate: Aggregate) -> None:
        """Choose the sizes and the group, and see that everything goes together."""
        rows, group, sizes = self.found.rows, choice.group, choice.candidates
        if sizes is None:
            most = min(rows // self._processes, LARGEST)
            self._sizes = [size for size in (1 << i for i in range(17)) if SMALLEST <= size <= most] or [max(most, 1)]
        else:
            self._sizes = sorted({max(1, size // self._processes) for size in sizes})
            if sizes[-1] > rows:
                raise ArgumentError(f"`candidates` must be at most {rows}, the rows of the data, got {sizes[-1]}")
            if any(size % self._processes for size in sizes):
                raise ArgumentError(f"`candidates` must be multiples of {self._processes} processes, got {sizes}")
        if self.found.normalizes and self._sizes[0] < 2:
            raise ArgumentError(
                f"every process must have 2 samples to normalise, got {(sizes or [rows])[0]} for {self._processes}"
            )
        if group is not None and group > min(self._work.rows // 2, self._sizes[-1]):
            most = min(self._work.rows // 2, self._sizes[-1])
            raise ArgumentError(f"`group` must be at most {most}: half of the rows, and the largest batch; got {group}")
        self._choice = replace(choice, processes=self._processes)
        most = min(USUAL, memory.friendly(max(self._work.rows // 4, 2)), max(self._sizes[-1], 2))
        self.found.group = group or most
        self._gradients = GroupGradients(self._work.parameters, aggregate)
        self._work.try_once(max(2, min(self._sizes[0], FEWEST_ROWS)))

    def run(self, repeats: int) -> None:
        """Make all the measurements, or as many as Ctrl-C lets."""
        self._training.begin(0.0)
        try:
            with self._budget.share("memory", 0.15):
                self._memory()
            with self._budget.share("throughput", 0.3):
                self._throughput()
                if not self.found.seconds:
                    raise ArgumentError(
                        f"a step of {self._sizes[0]} samples {self.found.memory.obstacle}: name smaller sizes"
                    )
                self._loader()
            with self._budget.share("gradient noise", 0.4 if repeats else 0.85):
                self._noise()
            with self._budget.share("largest batch", 0.1 if repeats else 1.0):
                self._largest()
            if repeats:
                with self._budget.share("training to a target", 1.0):
                    self._experiment(repeats)
        except KeyboardInterrupt:
            if not self.found.seconds:
                raise
            self.found.interrupted = self._budget.phase

    def answer(self) -> Advice:
        """Put together what all processes have found, and judge it."""
        return judge(together(ranks.gathered(self.found)), replace(self._choice, only_ran=True))

    def _step(self, size: int) -> None:
        self._training.step(size)
        self._meter.synchronize()

    def _memory(self) -> None:
        """Measure the bytes of a step at three sizes, after one that lets the optimizer set up."""
        known = self.found.memory
        if not known.attempt(self._sizes[0], partial(self._step, self._sizes[0])):
            return
        self._work.clear()
        known.available = self._meter.available()
        for size in memory.spread(self._sizes):
            self._budget.says(f"batches of {size}")
            self._work.clear()

            def step(size: int = size) -> None:
                known.bytes[size] = self._meter.bytes(partial(self._training.step, size))

            start = self._budget.clock()
            if not known.attempt(size, step) or self._budget.left() < self._budget.clock() - start:
                return

    def _throughput(self) -> None:
        """Time a step of every size, in turns, until the time or the memory is up."""
        sizes, known = list(self._sizes), self.found.memory
        start = self._budget.clock()
        for done in range(MOST_ROUNDS + WARM_UP):
            if done >= ROUNDS + WARM_UP and self._budget.clock() - start > LONG_ENOUGH:
                return
            for size in list(sizes):
                self._budget.says(f"batches of {size}")
                expected = self._expected(size)
                first = size not in self.found.seconds
                if self.found.seconds and not self._budget.allows(expected):
                    if first:
                        sizes = [s for s in sizes if s < size]
                        self.found.skipped.append(f"steps of batches from {size} on: about {expected:.2g} s each")
                        break
                    return
                if not known.fits(size) or not known.attempt(size, partial(self._timed, size, done)):
                    sizes = [s for s in sizes if s < size]
                    break

    def _expected(self, size: int) -> float:
        """Return about how long a step of a size takes, with the draw of its rows."""
        return self._step_expected(size) + size * median(self._draws or [0.0])

    def _step_expected(self, size: int) -> float:
        """Return about how long it takes: as before, or along the last two sizes timed."""
        seconds = {known: median(times) for known, times in self.found.seconds.items()}
        if not seconds:
            return 0.0
        if size in seconds:
            return seconds[size]
        *_, near = sorted(seconds)
        before = max((known for known in seconds if known < near), default=0)
        slope = (seconds[near] - seconds.get(before, 0.0)) / (near - before)
        return max(seconds[near] + slope * (size - near), seconds[near] * min(size / near, 1.0))

    def _timed(self, size: int, done: int) -> None:
        drawn = self._budget.clock()
        batch = self._work.draw(size)
        self._meter.synchronize()
        start = self._budget.clock()
        self._draws.append((start - drawn) / size)
        self._training.step_on(batch)
        self._meter.synchronize()
        taken = self._budget.clock() - start
        before = self.found.seconds.setdefault(size, [])
        before[:] = [taken] if done <= WARM_UP - 1 else [*before, taken]

    def _loader(self) -> None:
        """Time the DataLoader, if there is one, for a few batches after its first."""
        loader, size = self._work.samples.loader, self.found.current
        if loader is None or not size:
            step, draw = min(median(t) / b for b, t in self.found.seconds.items()), median(self._draws)
            self.found.loader_seconds = draw if draw > step else None  # rows by number, one after another
            return
        if isinstance(loader.sampler, RandomSampler) and len(loader.sampler) > MOST_SHUFFLED:
            self.found.skipped.append(f"the DataLoader, which would shuffle {len(loader.sampler):,} rows at once")
            return
        with held_generators(loader):
            self.found.loader_seconds = self._seconds_of(iter(loader), size)

    def _seconds_of(self, batches: Iterator[Any], size: int) -> float | None:
        """Return the seconds of one sample, over a few batches after the first."""
        next(batches, None)
        start, count = time.perf_counter(), 0
        for _ in range(ROUNDS):
            if next(batches, None) is None:
                break
            count += 1
            if self._budget.left() < 0:
                break
        return (time.perf_counter() - start) / (count * size) if count else None

    def _noise(self) -> None:
        """Measure gradient noise and the noise of batch statistics along a pilot run."""
        group = self.found.group = self._affordable_group()
        if (expected := GROUPS * self._expected(group)) > self._budget.left():
            self.found.skipped.append(f"the gradient noise: about {expected:.2g} s for {GROUPS} steps of {group}")
            return
        self._work.at_once = self.found.memory.largest
        look = HELD_OUT_SHARE * self._budget.left() * group / max(self._expected(group), 1e-9)
        self._work.spare(int(min(look, MOST_HELD_OUT)))
        listener = Listener(self._work.model, self._work.rows)

        def settle(size: int) -> None:
            listener.settle(size)
            self.found.layers, self.found.listened = listener.layers(), True

        def keep(found: training.Pilot) -> None:
            self.found.pilot = found

        with listener.listening():
            training.pilot(
                self._training, self._gradients, group=group, sweep=self._sweep(group), keep=keep, settle=settle,
                enough=lambda: self._budget.left() < 0, says=self._budget.says,
            )  # fmt: skip

    def _sweep(self, group: int) -> int:
        """Return how many steps a learning rate can be tried for, if a quarter of the time goes into that."""
        return int(SWEEP_SHARE * self._budget.left() / (len(training.RATES) * self._expected(group)))

    def _affordable_group(self) -> int:
        """Return m: smaller than wished for only where a step of that size does not fit."""
        group, known = self.found.group, self.found.memory
        while self._choice.group is None and group > SMALLEST_GROUP and not self._has_time_for(group):
            group //= 2
        while group not in known.ran and not (known.fits(group) and known.attempt(group, partial(self._step, group))):
            if self._choice.group is not None or group < 4:
                raise ArgumentError(f"a step of {group} samples {known.obstacle}: nothing can be measured")
            group //= 2
        return group

    def _has_time_for(self, group: int) -> bool:
        """Whether one look at the gradient noise leaves more than half of the time."""
        return BLOCKS * GROUPS * self._expected(group) < 0.5 * self._budget.left()

    def _largest(self) -> None:
        """Run a step at the size that the memory's line names, and at the one that is going to be advised."""
        self._training.begin(0.0)
        known = self.found.memory
        if self._choice.candidates is None:
            memory.verify(
                known, self._step, most=self.found.rows // self._processes, careful=self._meter.careful,
                enough=lambda size: not self._budget.allows(self._expected(size)),
            )  # fmt: skip
        while True:
            advised = judge(self.found, self._choice).batch_size // self._processes
            if advised in known.ran or known.attempt(advised, partial(self._step, advised)):
                return

    def _experiment(self, repeats: int) -> None:
        """Train to the pilot's target at sizes around the advised one."""
        pilot = self.found.pilot
        if pilot is None or len(pilot.stages) < 2:
            self.found.skipped.append("training to a target: no time was left for the pilot run that sets it")
            return
        advice = judge(self.found, self._choice)
        self.found.experiment = Experiment(pilot.target, repeats)
        critical = advice.limits["gradient_noise"].value or advice.batch_size
        race = Race(
            self._training, self.found.experiment, self.found.current or USUAL_BATCH, lambda: self._budget.left() < 0
        )
        race.run(
            experiment.chosen(self.found.seconds, advice.batch_size // self._processes),
            start=self.found.group, rate=pilot.rate, critical=critical, most=MOST_STEPS, says=self._budget.says,
        )  # fmt: skip
