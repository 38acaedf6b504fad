"""A worker seen from the process that tells it what to do."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import Any

from batchnorm.bench.memory import ENVIRONMENT

# Whatever lies in the working directory does not stand in for a module, here or in what a worker starts itself.
START = "import sys; sys.path[:] = sys.argv[4:]; from batchnorm.bench.worker import main; main(*sys.argv[1:4])"


class WorkerDiedError(RuntimeError):
    """A worker ended before it answered."""


class Process:
    """A worker process; it computes only between a request and its answer."""

    def __init__(self, framework: str, *, threads: int, mode: str) -> None:
        """Start it, and wait until its framework is imported.

        Raises:
            WorkerDiedError: if it cannot be.
        """
        self.framework = framework
        self._log = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115, closed with the process
        number = str(threads)
        settings = {
            "OMP_NUM_THREADS": number,
            "MKL_NUM_THREADS": number,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no idle processes beside
            "KERAS_BACKEND": "tensorflow",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "JAX_PLATFORMS": "cpu",
            "PYTHONSAFEPATH": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, framework, number, mode, *(entry for entry in sys.path if entry)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={name: value for name, value in os.environ.items() if name not in ENVIRONMENT} | settings,
            text=True,
            start_new_session=True,  # Ctrl-C is for the one that prints what is finished
        )
        try:
            greeting = self._answer()
        except BaseException:
            self.close()
            raise
        self.versions: dict[str, str] = greeting["versions"]
        self.keeps: bool = greeting["kept"]

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            status = self._process.wait()
            raise WorkerDiedError(f"the process of {self.framework} ended with status {status}{self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""

    def ask(self, do: str, **request: Any) -> Any:
        """Send a request and return its answer.

        Raises:
            WorkerDiedError: if there is none.
        """
        try:
            pipe = self._process.stdin
            if pipe is not None:
                pipe.write(json.dumps({"do": do, **request}) + "\n")
                pipe.flush()
        except BrokenPipeError:
            pass  # what has become of it shows when it is listened to
        return self._answer()

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
