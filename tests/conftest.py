"""Settings of hypothesis and of threads, which tests are slow, and the table of the mutants at the end of a run."""

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from parts import is_slow

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the processors; threads of each would stand in line
    os.environ.setdefault("OMP_NUM_THREADS", "1")

collect_ignore = [] if "KERAS_BACKEND" in os.environ else ["keras_backend"]  # see test_keras.py

SETTINGS: dict[str, Any] = {"deadline": None, "derandomize": True, "database": None}
hypothesis.settings.register_profile("default", max_examples=40, **SETTINGS)
FIRST_FAILURE = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # no shrinking
hypothesis.settings.register_profile("mutants", max_examples=8, phases=FIRST_FAILURE, **SETTINGS)
hypothesis.settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `make mutants`."""
    parser.addoption("--remember-killers", action="store_true", help="write which test rejects each mutant")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests."""
    for item in items:
        if is_slow(item.nodeid):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def clock_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time of `advise` go by with the work that is done, however busy the machine is: 1 ms and 20 µs a row."""
    from batchnorm.batch_size.budget import Budget
    from batchnorm.batch_size.work import Work

    now = 0.0
    computed = Work.loss

    def loss(self: Any, batch: Any) -> Any:
        nonlocal now
        now += 1e-3 + 2e-5 * len(next(iter(batch.values() if isinstance(batch, dict) else batch)))
        return computed(self, batch)

    monkeypatch.setattr(Work, "loss", loss)
    module = sys.modules["batchnorm.batch_size.advise"]  # whose name in the package is the function's
    monkeypatch.setattr(module, "Budget", partial(Budget, clock=lambda: now))


def _verdicts(reporter: pytest.TerminalReporter) -> Iterator[tuple[str, str, str]]:
    reports = [*reporter.stats.get("passed", []), *reporter.stats.get("failed", [])]
    for report in reports:
        yield from (value for key, value in getattr(report, "user_properties", []) if key == "mutant")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which test rejects which deliberate fault; reports, unlike prints, come back from xdist's workers."""
    rows = sorted(set(map(tuple, _verdicts(terminalreporter))))
    if not rows:
        return
    terminalreporter.section("mutants")
    name_width, file_width = (max(len(row[i]) for row in rows) for i in (0, 1))
    for name, file, verdict in rows:
        terminalreporter.line(f"{name:<{name_width}}  {file:<{file_width}}  {verdict}")
    survivors = sum(row[2] == "SURVIVED" for row in rows)
    if terminalreporter.config.getoption("remember_killers", False):
        killers = {name: verdict for name, _, verdict in rows if verdict != "SURVIVED"}
        text = json.dumps(killers, indent=0, ensure_ascii=False)
        Path(__file__).with_name("killers.json").write_text(text + "\n", "utf-8")
    terminalreporter.line(f"{len(rows)} mutants, {len(rows) - survivors} killed, {survivors} survived")


@pytest.fixture(scope="session")
def torchvision() -> Iterator[None]:
    """Let torchvision be imported: its build for CUDA finds no operators of its own beside torch's build for CPUs."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    del library
