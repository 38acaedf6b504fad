"""Workers of every kind do the same: the same bits, errors in one line, nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from batchnorm.errors import ArgumentError
from batchnorm.study import workers
from batchnorm.study.workers import Alone, Processes, WorkerDiedError, Workers

SECONDS = 120.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

TRAINING = """
import hashlib, sys
from dataclasses import replace
from pathlib import Path
from batchnorm.study.lab import Lab
from batchnorm.study.shipped import digits
from batchnorm.study.training import Problem, Spec
from batchnorm.study.workers import opened
SPEC = Spec("main", "before", "sigmoid", "minmax", "sgd", 60, 30, "", None, 0.3, 0)
def study(out, backend, jobs):
    with opened(backend, jobs) as pool:
        lab = Lab(Problem({"main": replace(digits(), metric="accuracy")}), Path(out), workers=pool)
        for placement in ("none", "before", "after"):
            sides = [replace(SPEC, placement=placement, seed=seed, std=0.1) for seed in range(5)]
            lab.ask([replace(side, rate=rate) for rate in (0.1, 1.0, 10.0) for side in sides])
        lab.train(lambda chunk: None)
    assert len(lab.outcomes) == 45
    assert len(list(Path(out).glob("*.json"))) == 3
    outcomes = [(spec, lab.outcomes[spec]) for spec in sorted(lab.outcomes)]
    print(hashlib.sha256(repr(outcomes).encode()).hexdigest())
"""
RUNS = {
    "processes": "study(sys.argv[1], 'processes', 2)",
    "ray": """
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
study(sys.argv[1], "ray", None)
assert ray.is_initialized(), "a cluster that was there before is left alone"
""",
    "dask": """
from distributed import Client, LocalCluster
with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
    study(sys.argv[1], "dask", None)
    assert client.submit(max, 1, 2).result() == 2, "a cluster that was there before is left alone"
""",
}


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=3 * SECONDS, check=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The finished runs of one process, as a digest."""
    done = python(TRAINING + "study(sys.argv[1], 'processes', 1)", tmp_path_factory.mktemp("alone"))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("backend", RUNS)
def test_every_backend_gives_the_same_bits(tmp_path: Path, alone: str, backend: str) -> None:
    done = python(TRAINING + RUNS[backend], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == alone


STARTED = """
import sys, time
from batchnorm.study.workers import WorkerDiedError, opened
from batchnorm.errors import ArgumentError
with opened(sys.argv[1], 2) as pool:
    large = pool.share(list(range(1000)))
    print(pool.jobs, pool.name, pool.submit(sum, large).result(), pool.submit(max, large, [2000]).result())
    for function, argument in ((int, "x"), (sys.exit, 3)):
        try:
            pool.submit(function, argument).result(timeout=60)
        except Exception as error:
            print(type(error).__name__, str(error).count("\\n"))
"""


@pytest.mark.parametrize("backend", RUNS)
def test_a_cluster_is_started_where_there_is_none(backend: str) -> None:
    done = python(STARTED, backend)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"2 {backend} 499500 [2000]"
    assert lines[1] == "ValueError 0"
    assert [line.split()[1] for line in lines[2:]] == ["0"]


def test_a_backend_that_does_not_exist_is_named() -> None:
    with (
        pytest.raises(ArgumentError, match=r"backend must be one of processes, ray, dask, got 'spark'"),
        workers.opened("spark"),
    ):
        pass


def test_one_job_is_this_process() -> None:
    with workers.opened("processes", 1) as pool:
        assert isinstance(pool, Alone)
        assert pool.submit(os.getpid).result() == os.getpid()
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()


def test_processes_are_told_apart_and_gone_when_closed() -> None:
    with workers.opened("processes", 2) as pool:
        busy = [pool.submit(time.sleep, 0.5) for _ in range(2)]  # so that both take a part
        numbers = {pool.submit(os.getpid).result() for _ in range(20)}
        assert all(future.result() is None for future in busy)
        assert os.getpid() not in numbers
    assert not any(psutil.pid_exists(number) for number in numbers)


def test_a_killed_worker_is_one_line() -> None:
    with workers.opened("processes", 2) as pool:
        number = pool.submit(os.getpid).result()
        os.kill(number, signal.SIGKILL)
        assert "a worker process was killed or has crashed" in _failure(pool)
        with pytest.raises(WorkerDiedError):
            pool.submit(os.getpid).result()


def test_the_last_words_of_a_worker_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "START", "raise SystemExit('no room for this process')")
    with workers.opened("processes", 2) as pool:
        assert "no room for this process" in _failure(pool)


def _failure(pool: Workers, calls: int = 10) -> str:
    """Return what one of some calls raises, as they reach the worker that has died."""
    with pytest.raises(WorkerDiedError) as raised:
        _ = [pool.submit(os.getpid).result() for _ in range(calls)]
    return str(raised.value)


ORPHANED = """
import os, sys, time
from batchnorm.study.workers import opened
with opened("processes", 2) as pool:
    print(*{pool.submit(os.getpid).result() for _ in range(50)}, flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def test_workers_end_with_the_process_that_started_them() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANED], stdout=subprocess.PIPE, env=ENVIRONMENT, text=True
    ) as process:
        assert process.stdout is not None
        numbers = [int(word) for word in process.stdout.readline().split()]
        assert numbers
        process.kill()
    end = time.monotonic() + 10
    while any(psutil.pid_exists(number) for number in numbers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(number) for number in numbers)


def test_workers_do_not_import_what_lies_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "random", "pickle", "queue", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *(entry for entry in sys.path if entry)])
    with workers.opened("processes", 2) as pool:
        assert isinstance(pool, Processes)
        assert pool.submit(max, 1, 2).result() == 2


def test_jobs_are_bounded() -> None:
    workers.check_jobs(workers.MOST_A_CORE, "processes")
    workers.check_jobs(10**6, "ray")
    with pytest.raises(ArgumentError, match=r"--jobs must be at most \d+, 4 for each core, got 1000000"):
        workers.check_jobs(10**6, "processes")
