"""Where runs are trained: in this process, in processes beside it, or on a cluster. One interface for all of them.

Nothing here imports PyTorch, so that processes can start, and import it, while this one is still busy with its own
imports.
"""

import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from batchnorm.errors import ArgumentError, BatchNormError

BACKENDS = ("processes", "ray", "dask")
MOST_A_CORE = 4
WAIT_S = 3.0  # for a process to end by itself
# One thread each, and memory that is kept: glibc's malloc would return arrays of a megabyte to the system and ask for
# them again, page by page, at every operation, which takes a third of a training step.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**27),
}
START = "import sys; sys.path[:] = sys.argv[2:]; from batchnorm.study.worker import main; main(sys.argv[1])"


class WorkerDiedError(BatchNormError):
    """A worker process ended before it answered."""


class Workers(Protocol):
    """Whoever calls functions elsewhere.

    Attributes:
        name: Of the backend.
        jobs: How many calls run at a time.
        room: How many may be handed over at a time, so that nobody waits for the next.
    """

    name: str
    jobs: int
    room: int

    def share(self, value: Any) -> Any:
        """Send a large value to every worker once, and return what stands for it among the arguments of a call."""
        ...

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Call a function, in the order of the calls to this method."""
        ...

    def close(self) -> None:
        """End the workers at once, whatever they are doing."""


class Alone:
    """This process, which does one thing after the other."""

    name = "processes"
    jobs = room = 1

    def share(self, value: Any) -> Any:
        """Return the value itself."""
        return value

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Call the function now."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # which is the caller's to raise, as of the other workers
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Do nothing: there is nobody to end."""


class Shared(NamedTuple):
    """What stands for a value that each process has been sent."""

    number: int


class _Call(NamedTuple):
    """A call that waits for a worker: its pickled request, and where the answer goes."""

    request: bytes
    future: "Future[Any]"


class Processes:
    """Processes on this machine, which start at once and are told what to do over pipes."""

    name = "processes"

    def __init__(self, jobs: int) -> None:
        """Start them; they import PyTorch while this process goes on."""
        self.jobs, self.room = jobs, 2 * jobs
        self._shared: list[bytes] = []
        self._waiting: SimpleQueue[_Call | None] = SimpleQueue()
        self._failure: WorkerDiedError | None = None
        self._log = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115, closed with the processes
        # One process that imports, then forks, takes half of the time of two; elsewhere forks are not safe.
        sizes = [jobs] if sys.platform == "linux" else [1] * jobs
        self._started: list[subprocess.Popen[bytes]] = []
        self._requests: list[Any] = []
        self._threads: list[threading.Thread] = []
        for size in sizes:
            self._start(size)

    def _start(self, size: int) -> None:
        """Start a process that becomes so many, and a thread for each that hands calls over to it."""
        requests, answers = ([os.pipe() for _ in range(size - 1)] for _ in range(2))
        theirs = [(reads, writes) for (reads, _), (_, writes) in zip(requests, answers, strict=True)]
        pairs = " ".join(f"{reads},{writes}" for reads, writes in theirs)
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, pairs, *(entry for entry in sys.path if entry)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,  # Ctrl-C is for the one that keeps what is finished
            pass_fds=[descriptor for pair in theirs for descriptor in pair],
        )
        self._started.append(process)
        for pair in theirs:
            for descriptor in pair:
                os.close(descriptor)
        streams: list[tuple[Any, Any]] = [(process.stdin, process.stdout)]
        for (_, writes), (reads, _) in zip(requests, answers, strict=True):
            streams.append((os.fdopen(writes, "wb"), os.fdopen(reads, "rb")))
        for stream in streams:
            self._requests.append(stream[0])
            self._threads.append(threading.Thread(target=self._feed, args=stream, daemon=True))
            self._threads[-1].start()

    def share(self, value: Any) -> Any:
        """Pickle the value once; each process gets it ahead of its next call."""
        shared = Shared(len(self._shared))
        self._shared.append(pickle.dumps(("share", shared, value)))
        return shared

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Put a call in the queue."""
        call = _Call(pickle.dumps(("call", function, arguments)), Future())
        self._waiting.put(call)
        if self._failure is not None:
            self._fail(self._failure)
        return call.future

    def _feed(self, requests: Any, answers: Any) -> None:
        """Hand calls over to one process, one after the other, until it or the queue ends."""
        try:
            self._exchange(requests, answers)
        finally:
            _close(requests)
            _close(answers)

    def _exchange(self, requests: Any, answers: Any) -> None:
        sent = 0
        while (call := self._waiting.get()) is not None:
            try:
                for shared in self._shared[sent:]:
                    pickle.dump(shared, requests)
                    sent += 1
                pickle.dump(call.request, requests)
                requests.flush()
                succeeded, answer = pickle.loads(pickle.load(answers))
            except (OSError, EOFError, ValueError, pickle.UnpicklingError):
                self._waiting.put(call)
                self._fail(WorkerDiedError(f"a worker process was killed or has crashed{self._last_words()}"))
                return
            if succeeded:
                call.future.set_result(answer)
            else:
                call.future.set_exception(answer)

    def _fail(self, failure: WorkerDiedError) -> None:
        """Let everything that waits, and will wait, raise the failure."""
        self._failure = failure
        with suppress(Empty):
            while True:
                call = self._waiting.get_nowait()
                if call is not None:
                    call.future.set_exception(failure)

    def _last_words(self) -> str:
        with suppress(ValueError):  # where it has been closed meanwhile
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            return f" ({lines[-1][:300]})" if lines else ""
        return ""

    def close(self) -> None:
        """Let the processes end, which they do when their pipes are closed; kill those that do not."""
        for _ in range(self.jobs):
            self._waiting.put(None)
        for requests in self._requests:  # not in this thread: a request that nobody reads yet would hold it up
            threading.Thread(target=_close, args=(requests,), daemon=True).start()
        for process in self._started:
            try:
                process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                _kill(process)
        for thread in self._threads:
            thread.join(WAIT_S)
        self._log.close()


def _close(stream: Any) -> None:
    with suppress(OSError):
        stream.close()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process with those it has become."""
    with suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def usable_cores() -> int:
    """Return how many processors this process may use, by its affinity and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = math.inf
    with suppress(OSError, ValueError):
        allowed, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        quota = float(allowed) / float(period)  # "max", where there is none, is no number
    return max(1, min(cores, math.ceil(quota) if math.isfinite(quota) else cores))


def check_jobs(jobs: int | None, backend: str) -> None:
    """Refuse more processes than make sense.

    Raises:
        ArgumentError: if there are.
    """
    most = MOST_A_CORE * usable_cores()
    if backend == "processes" and jobs is not None and jobs > most:
        raise ArgumentError(f"--jobs must be at most {most}, {MOST_A_CORE} for each core, got {jobs}")


@contextmanager
def opened(backend: "str | Workers" = "processes", jobs: int | None = None) -> Generator[Workers]:
    """Start workers, and end them when they are no longer needed; workers that were started before are left alone.

    Args:
        backend: "processes", "ray" or "dask"; or workers.
        jobs: How many; None: one a core, or what the cluster has. One process is this process.

    Raises:
        ArgumentError: if there is no such backend.
    """
    if not isinstance(backend, str):
        yield backend
        return
    workers = _started(backend, jobs)
    try:
        yield workers
    finally:
        workers.close()


def _started(backend: str, jobs: int | None) -> Workers:
    if backend not in BACKENDS:
        raise ArgumentError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    check_jobs(jobs, backend)
    if backend != "processes":
        from batchnorm.study import clusters

        return clusters.Ray(jobs) if backend == "ray" else clusters.Dask(jobs)
    count = jobs or usable_cores()
    return Alone() if count == 1 else Processes(count)
