"""A study that is stopped keeps what is finished, leaves nobody behind, and goes on to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals as POSIX does")

SECONDS = 300.0
# A shell that starts a job in the background has it ignore interrupts, and so would this one. Runs are short, and many.
STUDY = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from batchnorm.study import Settings, lab, runner
lab.WORK = 600
runner.advised = lambda study, setting: setting
Settings.steps = property(lambda _: 60)
Settings.short_steps = property(lambda _: 60)
from batchnorm.cli import app
app(["study", *sys.argv[1:]])
"""
TABLE = str(Path(__file__).parents[1] / "examples" / "placements.csv")
OPTIONS = (TABLE, "--target", "placed", "--claims", "speed", "--seeds", "3", "--quick")


@contextmanager
def study(out: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", STUDY, *OPTIONS, "--out", str(out), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_runs(out: Path, process: "subprocess.Popen[str]", runs: int = 2) -> list[psutil.Process]:
    """Wait until some runs are finished, and return the workers."""
    end = time.monotonic() + SECONDS
    while len(list((out / "runs").glob("*.json"))) < runs:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return psutil.Process(process.pid).children(recursive=True)


def all_gone(workers: list[psutil.Process]) -> bool:
    """Whether workers end within some seconds; one that waits to be collected has ended."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The results of a study that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    with study(out, "--jobs", "1") as process:
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return results(out)


def results(out: Path) -> str:
    """Return what results.json says, but for the command with the folder's name."""
    content = json.loads((out / "results.json").read_text("utf-8"))
    del content["command"]
    for claim in content["claims"]:
        del claim["rerun"]
    return json.dumps(content)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_what_is_finished_is_kept_and_taken_up(tmp_path: Path, whole: str, sent: signal.Signals, status: int) -> None:
    with study(tmp_path, "--jobs", "2") as process:
        workers = wait_for_runs(tmp_path, process)
        assert len(workers) == 2
        os.kill(process.pid, sent)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status
    if sent != signal.SIGKILL:
        assert err == f"\nInterrupted. What is finished is kept in {tmp_path}/runs: go on with --resume.\n"
    assert "Traceback" not in out + err
    assert all_gone(workers)
    assert not (tmp_path / "results.json").exists()
    kept = {file: file.read_bytes() for file in (tmp_path / "runs").glob("*.json")}
    assert kept
    with study(tmp_path, "--jobs", "2", "--resume") as process:
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert "; the others are finished)" in out
    assert all(file.read_bytes() == content for file, content in kept.items())
    assert results(tmp_path) == whole


def test_a_killed_worker_is_one_line(tmp_path: Path) -> None:
    with study(tmp_path, "--jobs", "2") as process:
        workers = wait_for_runs(tmp_path, process)
        workers[-1].kill()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: a worker process was killed or has crashed")
    assert err.count("\n") == 1
    assert "Traceback" not in out
    assert all_gone(workers)


def test_an_interruption_before_any_run_says_so(tmp_path: Path) -> None:
    with study(tmp_path, "--jobs", "2") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Loading PyTorch and scikit-learn\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "\nInterrupted before any run was finished: nothing is kept.\n"
    assert list(tmp_path.iterdir()) == []


LIMITED = STUDY.replace(
    "import signal, sys",
    """
import resource, signal, sys
import joblib  # which tries semaphores, as files, when it is imported
from batchnorm.study import folder
folder.PROBE = 10
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
""",
)


def test_a_disk_that_fills_up_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *OPTIONS, "--out", str(tmp_path), "--jobs", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot be written: File too large; what is finished is kept for --resume" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "runs").iterdir()) == []
