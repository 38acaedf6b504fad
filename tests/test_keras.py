"""The Keras layer on each backend: every test of keras_backend/, and the contract, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATHS = ["tests/keras_backend", "tests/test_contract.py", "src/batchnorm/keras", "docs/keras.md"]
OPTIONS = ["-q", "-ra", "-p", "no:cacheprovider", "-p", "no:xdist", "--doctest-modules", "--doctest-glob=docs/*.md"]
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": ""}


# PyTorch needs the least time, so it runs the slow tests too, at once.
RUNS = [("", "torch"), ("not slow", "tensorflow"), ("not slow", "jax"), ("slow", "tensorflow"), ("slow", "jax")]


@pytest.mark.parametrize(("marker", "backend"), RUNS)
def test_on_a_backend(marker: str, backend: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"KERAS_BACKEND": backend, **QUIET}
    paths = [path for path in PATHS if (ROOT / path).exists()]
    options = [*OPTIONS, "-m", marker]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--strict-markers --import-mode=importlib", *options]
    done = subprocess.run(
        [*command, *paths],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.OK, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert " passed" in done.stdout
    print(done.stdout[-2_000:])
