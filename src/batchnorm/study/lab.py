"""Where the runs are trained: each once, two and more at a time, kept as soon as finished, shared between claims."""

import hashlib
import json
import math
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from batchnorm import __version__
from batchnorm.outputs import plain
from batchnorm.study.training import Outcome, Problem, Spec, train

MOST_TOGETHER = 32
NAME_LENGTH = 24


def restored(value: Any) -> Any:
    """Return what `plain` made into None as NaN again."""
    if isinstance(value, dict):
        return {k: restored(v) for k, v in value.items()}
    if isinstance(value, list):
        return [restored(v) for v in value]
    return math.nan if value is None else value


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all: to a file beside it, then in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def chunks(specs: Iterable[Spec]) -> Iterator[list[Spec]]:
    """Yield runs that can train as one computation, the groups in the order in which they are first asked for."""
    unique = list(dict.fromkeys(specs))
    order = {group: i for i, group in reversed(list(enumerate(s.group for s in unique)))}
    ranked = sorted(unique, key=lambda s: order[s.group])
    for _, members in groupby(ranked, key=lambda s: s.group):
        together = list(members)
        parts = math.ceil(len(together) / MOST_TOGETHER)
        size = math.ceil(len(together) / parts)
        yield from (together[i : i + size] for i in range(0, len(together), size))


class Lab:
    """Trains runs and remembers their outcomes.

    Attributes:
        outcomes: Every run finished so far.
    """

    def __init__(self, problem: Problem, folder: Path, *, jobs: int, resume: bool) -> None:
        """Keep outcomes under `folder`; with `resume`, start from those that are there."""
        self.problem, self.jobs, self._folder = problem, jobs, folder
        self.outcomes: dict[Spec, Outcome] = {}
        self._asked: set[Spec] = set()
        self._queue: list[list[Spec]] = []
        self._recalled: list[Spec] = []
        if not resume:
            for kept in folder.glob(f"{'[0-9a-f]' * NAME_LENGTH}.json"):
                kept.unlink()
        self._fingerprint = hashlib.sha256(f"{__version__} {problem.model}".encode())
        for data in problem.datasets.values():
            self._fingerprint.update(data.x.tobytes() + data.y.tobytes())

    def _file(self, chunk: Sequence[Spec]) -> Path:
        key = self._fingerprint.copy()
        key.update(repr(list(chunk)).encode())
        return self._folder / f"{key.hexdigest()[:NAME_LENGTH]}.json"

    def _recall(self, chunk: Sequence[Spec]) -> bool:
        """Take a chunk's outcomes from its file, if it is there and whole."""
        try:
            kept: list[dict[str, Any]] = json.loads(self._file(chunk).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        for spec, outcome in zip(chunk, kept, strict=True):
            self.outcomes[spec] = Outcome(**restored(outcome))
        return True

    def ask(self, specs: Iterable[Spec]) -> None:
        """Put runs that were not asked for yet ahead of what waits, long ones first; recall those that are kept."""
        new = [s for s in dict.fromkeys(specs) if s not in self._asked]
        self._asked.update(new)
        waiting = [chunk for chunk in chunks(new) if not self._recall(chunk)]
        self._queue[:0] = sorted(waiting, key=lambda chunk: -sum(s.steps for s in chunk))
        self._recalled += [s for s in new if s in self.outcomes]

    def train(self, finished: Callable[[Sequence[Spec]], None]) -> None:
        """Train all that was asked for, and call `finished` with the runs that are done; it may ask for more."""
        while self._recalled or self._queue:
            self._hand_over(finished)
            workers: Any = Parallel(
                n_jobs=self.jobs, return_as="generator_unordered", pre_dispatch="n_jobs", max_nbytes=None
            )
            with _interrupts_for_this_process_only():
                results = workers(delayed(_labelled)(chunk, self.problem) for chunk in self._take())
            for chunk, outcomes in results:
                write_json(self._file(chunk), [asdict(outcome) for outcome in outcomes])
                self._recall(chunk)
                finished(chunk)
                self._hand_over(finished)

    def _take(self) -> Iterator[list[Spec]]:
        """Take chunks from the queue, which may grow meanwhile."""
        while self._queue:
            yield self._queue.pop(0)

    def _hand_over(self, finished: Callable[[Sequence[Spec]], None]) -> None:
        while self._recalled:
            done, self._recalled = self._recalled, []
            finished(done)

    def __getitem__(self, spec: Spec) -> Outcome:
        """Return the outcome of a run that has been trained."""
        return self.outcomes[spec]


@contextmanager
def _interrupts_for_this_process_only() -> Generator[None]:
    """Let worker processes that start here ignore Ctrl-C, which reaches all of them: this process ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _labelled(chunk: list[Spec], problem: Problem) -> tuple[list[Spec], list[Outcome]]:
    return chunk, train(chunk, problem)
