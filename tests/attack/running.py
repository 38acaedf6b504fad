"""Run command lines, each in a process forked from one that has imported everything: in milliseconds, with real ends.

What Python does when it ends is done in the fork too: threads are waited for, exit functions run, streams are flushed.
"""

import atexit
import gc
import importlib
import io
import os
import pty
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from attack.attempt import Attempt, Outcome

MARK = "BATCHNORM_ATTACK"  # in the environment of a command and of what it starts
GRACE = 10.0  # seconds for what a command has started to end
IMPORTED = (
    "batchnorm.cli", "batchnorm.batch_size", "batchnorm.batch_size.command", "batchnorm.surgery.factory",
    "batchnorm.bench.command", "batchnorm.bench.measure", "batchnorm.bench.screen", "batchnorm.bench.chart",
    "batchnorm.study.command", "batchnorm.study.tables", "batchnorm.study.pictures", "batchnorm.study.claims",
    "batchnorm.study.runner", "torch.export", "torch._dynamo", "torch.onnx", "onnxscript", "pandas", "openpyxl",
    "pyarrow.parquet", "sklearn.datasets",
)  # fmt: skip


def warm() -> None:
    """Import what commands import, so that each fork has it."""
    for name in IMPORTED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.freeze()


def run(attempt: Attempt) -> Outcome:
    """Run a command line in a folder of its own, and look at what it leaves."""
    # Beside it, not in it: whoever reads pipes for it must not find them in its folder.
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    try:
        lay_out(folder, attempt)
        before = contents(folder)
        sys.stdout.flush()
        sys.stderr.flush()
        start = time.monotonic()
        mark = folder.name
        told, status, hung, peak = _watched(attempt, folder, mark)
        seconds = time.monotonic() - start
        left = remaining(mark)
        return Outcome(status, told[0], told[1], before, contents(folder), hung, peak, left, seconds)
    finally:
        for path in folder.rglob("*"):
            with suppress(OSError):
                path.chmod(0o700) if path.is_dir() else None
        shutil.rmtree(folder, ignore_errors=True)


def lay_out(folder: Path, attempt: Attempt) -> None:
    """Write the files that an attempt starts with."""
    for name, content in attempt.files.items():
        path = folder / name.rstrip("/|@")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif name.endswith("|"):
            os.mkfifo(path)
        elif name.endswith("@"):
            path.symlink_to(content.decode())
        else:
            path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by its name, and the folders that are empty."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "__pycache__" in name or ".cache" in name:
            continue
        if path.is_file():
            found[name] = path.read_bytes()
        elif path.is_fifo() or (path.is_dir() and not any(path.iterdir())):
            found[name] = b""
    return found


def _watched(attempt: Attempt, folder: Path, mark: str) -> tuple[list[bytes], int, bool, int]:
    """Fork, send the signal, read what is printed, and wait; kill what takes too long."""
    ours, theirs = _streams(attempt)
    child = os.fork()
    if child == 0:
        _become(attempt, folder, mark, theirs, ours)
    for descriptor in {d for d in theirs if d is not None}:
        os.close(descriptor)
    watch = _Watch(child, attempt)
    with selectors.DefaultSelector() as selector:
        for at, descriptor in enumerate(ours):
            if descriptor is not None:
                selector.register(descriptor, selectors.EVENT_READ, at)
        while watch.goes_on(bool(selector.get_map())):
            for key, _ in selector.select(0.005):
                data = _read(key.fd)
                watch.told[key.data] += data
                if not data:
                    selector.unregister(key.fd)
    for descriptor in ours:
        if descriptor is not None:
            os.close(descriptor)
    return watch.told, watch.status or 0, watch.hung, watch.peak


def _read(descriptor: int) -> bytes:
    with suppress(OSError):  # of a terminal whose other end is closed
        return os.read(descriptor, 1 << 16)
    return b""


class _Watch:
    """A command that runs: is it time to send the signal, or to kill it, and how has it ended?"""

    def __init__(self, child: int, attempt: Attempt) -> None:
        self.told, self.hung, self.peak = [b"", b""], False, 0
        self.status: int | None = None
        self._child, self._attempt = child, attempt
        self._start = self._ended = time.monotonic()
        self._sent = attempt.signal is None

    def goes_on(self, heard: bool) -> bool:
        """Do what it is time for; return whether there is more to wait for, or to be heard."""
        elapsed = time.monotonic() - self._start
        if self.status is not None:  # who else holds its pipes is given some seconds, and counted then
            return heard and time.monotonic() - self._ended < GRACE
        if not self._sent and elapsed >= self._attempt.after:
            self._sent = True
            os.kill(self._child, self._attempt.signal or 0)
        if elapsed > self._attempt.seconds:
            self.hung = True
            os.kill(self._child, signal.SIGKILL)
        done, code, used = os.wait4(self._child, os.WNOHANG)
        if done:
            self.status, self.peak = os.waitstatus_to_exitcode(code), used.ru_maxrss * 1024
            self._ended = time.monotonic()
        return True


def _streams(attempt: Attempt) -> tuple[list[int | None], list[int | None]]:
    """Return our ends of stdout and stderr, and those of the command."""
    if attempt.output == "terminal":
        master, slave = pty.openpty()
        return [master, None], [slave, slave]
    read_err, write_err = os.pipe()
    if attempt.output == "closed":
        return [None, read_err], [None, write_err]
    if attempt.output == "full":
        return [None, read_err], [os.open("/dev/full", os.O_WRONLY), write_err]
    read_out, write_out = os.pipe()
    if attempt.output == "broken":
        os.close(read_out)
        return [None, read_err], [write_out, write_err]
    return [read_out, read_err], [write_out, write_err]


def _become(attempt: Attempt, folder: Path, mark: str, theirs: list[int | None], ours: list[int | None]) -> None:
    """Be the command, from its first line to its end. Never returns."""
    status = 70
    try:
        os.setsid()
        os.chdir(folder)
        for at, descriptor in enumerate(theirs, start=1):
            if descriptor is None:
                os.close(at)
            else:
                os.dup2(descriptor, at)
        for descriptor in {d for d in (*theirs, *ours) if d is not None and d > 2}:
            os.close(descriptor)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.close(nowhere)
        os.environ.update({**attempt.environment, MARK: mark, "TMPDIR": tempfile.gettempdir()})
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as `python -m batchnorm` begins
        sys.argv = ["batchnorm", *attempt.arguments]
        sys.stdout = _text(1, attempt)
        sys.stderr = _text(2, attempt)
        exec(attempt.prepare, {})
        if attempt.largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (attempt.largest, attempt.largest))
        status = _ran()
    finally:
        os._exit(status)


def _text(descriptor: int, attempt: Attempt) -> Any:
    """Return a stream as Python opens it; None where it is closed."""
    try:
        os.fstat(descriptor)
    except OSError:
        return None
    stream = io.FileIO(descriptor, "w", closefd=False)
    lines = descriptor == 2 or stream.isatty()
    at_once = "PYTHONUNBUFFERED" in attempt.environment
    return io.TextIOWrapper(
        io.BufferedWriter(stream), encoding=attempt.encoding, line_buffering=lines, write_through=at_once
    )


def _ran() -> int:
    """Run the command and do what Python does at its end."""
    from batchnorm.cli import app

    status: Any = 0
    try:
        app(prog_name="batchnorm")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError) as error:
            os.write(2, f"Exception ignored while flushing: {error!r}\n".encode())
            status = 120
    return status


def remaining(mark: str) -> int:
    """Return how many processes that a command has started outlive it by some seconds; end them."""
    end = time.monotonic() + GRACE
    while (found := _marked(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    for process in found:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)
    return len(found)


def _marked(mark: str) -> list[int]:
    """Return the processes of a command: those that stand in its folder, or have its mark in their environment."""
    found: list[int] = []
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if os.readlink(entry / "cwd").endswith(mark) or wanted in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found
