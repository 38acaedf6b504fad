"""Time every contender in every case: in turn, each in its process, only one computing at a time."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from batchnorm.bench.bandwidth import SMALLEST, rate, share
from batchnorm.bench.cases import Case
from batchnorm.bench.contenders import BASELINE, CONTENDERS
from batchnorm.bench.process import Process, WorkerDiedError
from batchnorm.bench.results import Results, Row
from batchnorm.bench.worker import calls_a_sample

WARM_UP = 1  # rounds, beside the calls that each contender has made by itself
PAUSE_S = 0.005  # after a change of process: threads of the last one may still be looking for work
FACTS = ("failure", "error", "allowed", "kernel")  # what a worker tells, that a row keeps
ROOFLINE = "by_torch"  # where copies are timed


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        contenders: Who is timed, in this order.
        threads: Of every contender.
        rounds: Samples of each.
        modes: How freed memory is treated: "kept", "default" or both.
    """

    contenders: tuple[str, ...]
    threads: int
    rounds: int
    modes: tuple[str, ...] = ("kept",)


class Watcher(Protocol):
    """Who is told how it goes on."""

    def begin(self, mode: str, case: Case) -> None:
        """A case begins."""

    def done(self, case: Case, rows: Sequence[Row]) -> None:
        """A case is finished, or none of its contenders could be timed."""


def measure(cases: Sequence[Case], settings: Settings, *, into: Results, watcher: Watcher) -> None:
    """Measure all cases; what is finished is in `into` even where this is interrupted."""
    for mode in settings.modes:
        with Run(mode, settings, into) as run:
            for case in cases:
                watcher.begin(mode, case)
                rows = run.rows(case)
                into.rows += rows
                watcher.done(case, rows)
    into.finished = True


class Run:
    """The processes of one mode of memory."""

    def __init__(self, mode: str, settings: Settings, into: Results) -> None:
        """Start nothing yet: a process starts when a case needs it."""
        self.mode, self.settings, self.into = mode, settings, into
        self._processes: dict[str, Process] = {}
        self._last: str | None = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.close()

    def _process(self, framework: str) -> Process:
        if framework not in self._processes:
            made = Process(framework, threads=self.settings.threads, mode=self.mode)
            self._processes[framework] = made
            self.into.machine["versions"].update(made.versions)
            note = "the C library is not glibc: freed memory was not kept"
            if self.mode == "kept" and not made.keeps and note not in self.into.notes:
                self.into.notes.append(note)
        return self._processes[framework]

    def _ask(self, framework: str, do: str, **request: Any) -> Any:
        try:
            return self._process(framework).ask(do, **request)
        except WorkerDiedError:
            if framework in self._processes:
                self._processes.pop(framework).close()
            raise

    def rows(self, case: Case) -> list[Row]:
        """Return a row for each contender of a case: prepared and checked first, then timed in turn."""
        names = [name for name in self.settings.contenders if CONTENDERS[name].serves(case)]
        told: dict[str, dict[str, Any]] = {}
        frameworks: dict[str, str] = {}
        for framework in dict.fromkeys(CONTENDERS[name].process for name in names):
            found = self._prepared(framework, case, [n for n in names if CONTENDERS[n].process == framework])
            told |= found
            frameworks |= dict.fromkeys(found, framework)
        ready = {name: frameworks[name] for name in told if told[name].get("failure") is None}
        likely = told.get(BASELINE, {}).get("call_s") or min(
            (told[name]["call_s"] for name in ready if name in CONTENDERS), default=1.0
        )
        calls = calls_a_sample(likely, case.array_bytes)
        taken = self._timed(ready, calls, told) if set(ready) & set(names) else {}
        facts = {name: {key: told[name].get(key) for key in FACTS} for name in names}
        return [_row(Row(self.mode, case, name, **facts[name]), taken, calls) for name in names]

    def _prepared(self, framework: str, case: Case, names: list[str]) -> dict[str, dict[str, Any]]:
        copies = framework == ROOFLINE and case.array_bytes >= SMALLEST
        try:
            return self._ask(framework, "prepare", found=case.as_dict(), names=names, copies=copies)
        except WorkerDiedError as died:
            return {name: {"failure": str(died)} for name in names}

    def _timed(self, ready: dict[str, str], calls: int, told: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
        """Return the samples of each; a process that dies takes its contenders out, and says so in `told`."""
        taken: dict[str, list[float]] = {name: [] for name in ready}
        order = list(ready)
        for round_ in range(self.settings.rounds + WARM_UP):
            for name in order[round_ % len(order) :] + order[: round_ % len(order)]:
                if told[name].get("failure") is not None:
                    continue
                if ready[name] != self._last:
                    time.sleep(PAUSE_S)
                    self._last = ready[name]
                try:
                    seconds = self._ask(ready[name], "sample", name=name, calls=calls)
                except WorkerDiedError as died:
                    for gone in (n for n, framework in ready.items() if framework == ready[name]):
                        told[gone]["failure"] = str(died)
                    continue
                if round_ >= WARM_UP:
                    taken[name].append(seconds)
        return taken


def _row(row: Row, taken: dict[str, list[float]], calls: int) -> Row:
    """Return the row with its times, where it has some."""
    name, case, samples = row.contender, row.case, taken.get(row.contender, [])
    if row.failure is not None or not samples:
        return row
    least = {n: min(t) for n, t in taken.items() if t}
    copies = [rate(case.array_bytes, least[n]) for n in least if n not in CONTENDERS]
    bandwidth = max(copies, default=None)
    measured = replace(
        row,
        calls=calls,
        samples=len(samples),
        min_s=least[name],
        median_s=statistics.median(samples),
        ratio=least[BASELINE] / least[name] if BASELINE in least else None,
        bandwidth=bandwidth,
        share=None if bandwidth is None else share(case.least_bytes, least[name], bandwidth),
    )
    return measured.rounded()
