"""Where the runs are trained: each once, many together, kept as soon as finished, shared between claims."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from batchnorm.errors import BatchNormError
from batchnorm.study.data import DataError, Dataset
from batchnorm.study.kept import Kept
from batchnorm.study.training import Outcome, Problem, Spec, train
from batchnorm.study.workers import Alone, Workers

MOST_TOGETHER = 32
WORK = 16_000  # steps of a replica of the base network in a chunk, some seconds: what is lost on Ctrl-C
BASE = 60 * (64 * 100 + 2 * 100 * 100 + 100 * 10)  # multiplications of a forward pass of the base network on the digits
OWN_WEIGHT = 8  # of a step of the user's model, which trains alone
TRIAL_STEPS, TRIAL_RUNS = 8, 8
# A trial's step takes 3.6 times as long as one of a whole run, as the first steps are evaluated one by one; and claims
# ask for about 1.4 times the runs that they ask for at first.
TRIAL_EXCESS = 3.6 / 1.4
_TRAINS = Lock()  # threads of a cluster's worker would share torch's random numbers


def weight(spec: Spec, data: Dataset) -> float:
    """Return how many times the work of a step of the base network a step of a run takes, at least 1."""
    widths = (math.prod(data.x.shape[1:]), *spec.hidden, data.outputs)
    return max(spec.batch_size * sum(a * b for a, b in pairwise(widths)) / BASE, 1.0)


def chunks(unit: Iterable[Spec], weigh: Callable[[Spec], float] = lambda _: 1.0) -> Iterator[list[Spec]]:
    """Yield runs that can train as one computation, the groups in the order in which they are first asked for.

    The chunks depend on the unit alone: which runs train together can change the last bits of their outcomes.
    """
    unique = list(dict.fromkeys(unit))
    order = {group: i for i, group in reversed(list(enumerate(s.group for s in unique)))}
    ranked = sorted(unique, key=lambda s: order[s.group])
    for group, members in groupby(ranked, key=lambda s: s.group):
        together = list(members)
        most = max(1, min(MOST_TOGETHER, int(WORK / (group.steps * weigh(group)))))
        parts = math.ceil(len(together) / most)
        size = math.ceil(len(together) / parts)
        yield from (together[i : i + size] for i in range(0, len(together), size))


class Lab:
    """Trains runs and remembers their outcomes.

    Attributes:
        problem: What is trained on.
        outcomes: Every run finished so far.
        kept: Every run finished so far, on disk.
    """

    def __init__(self, problem: Problem, folder: Path, *, workers: Workers | None = None, resume: bool = False) -> None:
        """Keep outcomes under `folder`; with `resume`, start from those that are there. Without workers, train here."""
        self.problem, self.kept, self.workers = problem, Kept(folder, problem), workers or Alone()
        self._shared: Any = None
        self.outcomes: dict[Spec, Outcome] = {}
        self._resume = resume
        self._asked: set[Spec] = set()
        self._queue: list[list[Spec]] = []
        self._recalled: list[Spec] = []
        self._step_s = 0.0

    def _weight(self, spec: Spec) -> float:
        return OWN_WEIGHT if self.problem.model else weight(spec, self.problem.datasets[spec.data])

    def ask(self, unit: Iterable[Spec]) -> None:
        """Put the runs of a unit that were not asked for yet ahead of what waits; recall those that are kept.

        Raises:
            ValueError: if some of a chunk's runs were asked for in another unit: how they are trained would depend on
                which claim came first.
        """
        waiting: list[list[Spec]] = []
        for chunk in chunks(unit, self._weight):
            earlier = self._asked.intersection(chunk)
            if len(earlier) == len(chunk):
                continue
            if earlier:
                raise ValueError(f"units must be equal or disjoint, and two share {len(earlier)} runs: {chunk[0]}")
            self._asked.update(chunk)
            outcomes = self.kept.read(chunk) if self._resume else None
            if outcomes is None:
                waiting.append(chunk)
            else:
                self.outcomes.update(zip(chunk, outcomes, strict=True))
                self._recalled += chunk
        self._queue[:0] = sorted(waiting, key=lambda chunk: -self._work(chunk))

    def _work(self, chunk: Sequence[Spec]) -> float:
        return sum(s.steps for s in chunk) * self._weight(chunk[0])

    def train(self, finished: Callable[[Sequence[Spec]], None]) -> None:
        """Train all that was asked for, and call `finished` with the runs that are done; it may ask for more.

        Raises:
            DataError: if the user's model fails, or a run cannot be written.
            WorkerDiedError: if a worker process ends.
        """
        running: dict[Future[Any], list[Spec]] = {}
        self._shared = self.workers.share(self.problem)
        self._hand_over(finished)
        try:
            while self._submit(running):
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    chunk = running[future]
                    self._take(chunk, future.result())
                    del running[future]
                    finished(chunk)
                    self._hand_over(finished)
        except BaseException:
            self._rescue(running)
            raise

    def _submit(self, running: dict[Future[Any], list[Spec]]) -> bool:
        """Hand over as many chunks as there is room for; return whether any are on their way."""
        while self._queue and len(running) < self.workers.room:
            chunk = self._queue.pop(0)
            running[self.workers.submit(_trained, chunk, self._shared)] = chunk
        return bool(running)

    def _take(self, chunk: Sequence[Spec], outcomes: Sequence[Outcome]) -> None:
        self.outcomes.update(zip(chunk, self.kept.write(chunk, outcomes), strict=True))

    def _rescue(self, running: dict[Future[Any], list[Spec]]) -> None:
        """Keep what has been finished and not taken yet, when something else stops the study."""
        for future, chunk in running.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                self._take(chunk, future.result())

    def _hand_over(self, finished: Callable[[Sequence[Spec]], None]) -> None:
        while self._recalled:
            done, self._recalled = self._recalled, []
            finished(done)

    def seconds(self) -> float:
        """Return about how long what waits will take, from a few steps of the first chunk, which are timed here."""
        if not self._queue:
            return 0.0
        if not self._step_s:
            trial = [replace(s, steps=TRIAL_STEPS, probe="") for s in self._queue[0][:TRIAL_RUNS]]
            start = time.perf_counter()
            _trained(trial, self.problem)
            work = len(trial) * TRIAL_STEPS * self._weight(trial[0]) * TRIAL_EXCESS
            self._step_s = (time.perf_counter() - start) / work
        return self._step_s * sum(map(self._work, self._queue)) / self.workers.jobs

    def __getitem__(self, spec: Spec) -> Outcome:
        """Return the outcome of a run that has been trained."""
        return self.outcomes[spec]


def _trained(chunk: Sequence[Spec], problem: Problem) -> list[Outcome]:
    """Train a chunk, and leave the number of threads as it was; where the user's model fails, say so in a line."""
    with _TRAINS:
        threads = torch.get_num_threads()
        try:
            return train(chunk, problem)
        except BatchNormError:
            raise
        except (Exception, SystemExit) as error:  # of whatever kind the user's code brings about
            if problem.model is None:
                raise
            from batchnorm.outputs import told

            raise DataError(f"`--model {problem.model}` failed in training: {told(error)}") from None
        finally:
            torch.set_num_threads(threads)
