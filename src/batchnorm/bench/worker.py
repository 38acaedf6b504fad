"""A process with the contenders of one framework: prepares, checks and times what it is told to, a line of JSON each.

Started by `process.py`, it reads requests from its standard input and answers on its standard output. When the input
ends, which the end of whoever asks does too, it ends at once, whatever it is doing.
"""

import gc
import importlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchnorm.bench import memory

CALIBRATION, SAMPLE_S, MOST_CALLS = 3, 0.01, 500
TINY, TINY_CALLS = 64 * 2**10, 200  # bytes of an array; single calls would tell how long threads take to wake


class Worker:
    """The contenders of one framework."""

    def __init__(self, framework: str, threads: int) -> None:
        """Import the framework."""
        self.framework: Any = importlib.import_module(f"batchnorm.bench.{framework}")
        self.threads = threads
        self.versions = self.framework.start(threads)
        self.steps: dict[str, Callable[[], object]] = {}

    def prepare(self, found: dict[str, Any], names: list[str], copies: bool) -> dict[str, Any]:
        """Make contenders ready for a case, check them and run them a few times.

        Returns:
            For each contender the error and what is allowed, the seconds of a call, or the `failure`.
        """
        from batchnorm.bench.arrays import arrays
        from batchnorm.bench.cases import Case

        case = Case.from_dict(found)
        self.steps.clear()
        self.framework.forget()
        gc.collect()
        given = arrays(case)
        told: dict[str, Any] = {}
        for name in names:
            told[name] = self._one(name, case, given)
        for name, ready in (self.framework.copies(case, given, self.threads) if copies else {}).items():
            self.steps[name] = ready.step
            told[name] = {"call_s": self._call_s(name)}
        return told

    def _one(self, name: str, case: Any, given: Any) -> dict[str, Any]:
        from batchnorm.bench import truth

        try:
            ready = self.framework.prepare(name, case, given)
            error, allowed = truth.error(ready.outputs(), *truth.expected(case, given)), truth.ALLOWED[case.dtype]
            facts = {"error": error, "allowed": allowed, "kernel": ready.kernel}
            if not error <= allowed:
                wrong = f"wrong by {error:.1e} of the largest value, where {allowed:.1e} is allowed"
                return {**facts, "failure": wrong}
            self.steps[name] = ready.step
            return {**facts, "call_s": self._call_s(name)}
        except Exception as failure:  # of whatever kind: it is told, and the others go on
            return {"failure": " ".join(f"{type(failure).__name__}: {failure}".split())[:300]}

    def _call_s(self, name: str) -> float:
        return min(self.sample(name, 1) for _ in range(CALIBRATION))

    def sample(self, name: str, calls: int) -> float:
        """Return the seconds of one call, the mean over some in a row."""
        step = self.steps[name]
        gc.disable()
        try:
            start = time.perf_counter()
            for _ in range(calls):
                step()
            return (time.perf_counter() - start) / calls
        finally:
            gc.enable()


def calls_a_sample(call_s: float, array_bytes: int) -> int:
    """Return how many calls to time together, for a sample long enough to be measured.

    >>> calls_a_sample(1e-3, 2**20), calls_a_sample(0.5, 2**30), calls_a_sample(0.5, 2**10)
    (10, 1, 200)
    """
    return max(TINY_CALLS if array_bytes <= TINY else 1, min(MOST_CALLS, round(SAMPLE_S / call_s)))


def _pin(threads: int) -> None:
    """Run on as many processors as there are threads: some frameworks ask for nothing else. Whole cores come first."""
    if hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        cores: dict[str, list[int]] = {}
        for processor in usable:
            cores.setdefault(_core(processor), []).append(processor)
        usable.sort(key=lambda processor: cores[_core(processor)].index(processor))
        os.sched_setaffinity(0, usable[:threads])


def _core(processor: int) -> str:
    """Return what the processors of one core share."""
    topology = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
    return topology.read_text(encoding="utf-8") if topology.exists() else str(processor)


def _receive(waiting: "queue.SimpleQueue[str]") -> None:
    """Take requests from standard input; end this process when there can be no more."""
    for line in sys.stdin:
        waiting.put(line)
    os._exit(0)


def main(framework: str, number: str, mode: str) -> None:
    """Answer requests until there are no more.

    Args:
        framework: The module of its contenders.
        number: Of threads.
        mode: How freed memory is treated.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(waiting,), daemon=True).start()
    threads = int(number)
    kept = memory.keep() if mode == "kept" else False
    _pin(threads)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a framework prints is no answer

    def answer(told: Any) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    worker = Worker(framework, threads)
    answer({"versions": worker.versions, "kept": kept})
    while True:
        request = json.loads(waiting.get())
        answer(getattr(worker, request.pop("do"))(**request))
