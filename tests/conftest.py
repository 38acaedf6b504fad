"""Settings of hypothesis and of threads, and the table of the mutants at the end of a run."""

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the processors; threads of each would stand in line
    os.environ.setdefault("OMP_NUM_THREADS", "1")

collect_ignore = [] if "KERAS_BACKEND" in os.environ else ["keras_backend"]  # see test_keras.py

SETTINGS: dict[str, Any] = {"deadline": None, "derandomize": True, "database": None}
hypothesis.settings.register_profile("default", max_examples=40, **SETTINGS)
FIRST_FAILURE = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # no shrinking
hypothesis.settings.register_profile("mutants", max_examples=8, phases=FIRST_FAILURE, **SETTINGS)
hypothesis.settings.load_profile("default")


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
    terminalreporter.line(f"{len(rows)} mutants, {len(rows) - survivors} killed, {survivors} survived")
