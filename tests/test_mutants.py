"""The tests of the tests: each deliberate fault makes the suite fail, and without one the very same run passes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import suite
from mutants import MUTANTS, Mutant
from mutants_batch_size import BATCH_SIZE
from mutants_core import CORE
from mutants_native import NATIVE
from mutants_study import STUDY
from mutants_surgery import SURGERY

EVERY = [*MUTANTS, *CORE, *NATIVE, *BATCH_SIZE, *SURGERY, *STUDY]
SOURCE = suite.ROOT / "src" / "batchnorm"
KILLERS: dict[str, str] = json.loads(Path(__file__).with_name("killers.json").read_text("utf-8"))
CACHES = shutil.ignore_patterns("__pycache__")


def write_mutant(mutant: Mutant, source: Path) -> None:
    """Copy the package with one text replaced; the text must occur exactly once, or the table has rotted."""
    shutil.copytree(SOURCE, source / "batchnorm", ignore=CACHES)
    path = source / "batchnorm" / mutant.file
    text = path.read_text("utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.file} holds {text.count(mutant.old)} times: {mutant.old}"
    path.write_text(text.replace(mutant.old, mutant.new), "utf-8")


def killer(outcome: suite.Outcome) -> str | None:
    """Return the test that failed; a run that broke down otherwise has rejected nothing."""
    failed = re.findall(r"^FAILED tests/([^\s\[]+)", outcome.output, re.MULTILINE)
    return failed[0] if outcome.code == pytest.ExitCode.TESTS_FAILED and failed else None


# `make mutants` writes killers.json: the test that rejected each mutant, which is tried before the whole part.
@pytest.mark.parametrize("mutant", EVERY, ids=lambda m: m.name)
def test_a_fault_is_rejected(mutant: Mutant, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    write_mutant(mutant, tmp_path)
    part, known = mutant.part or suite.part_of(mutant.file), KILLERS.get(mutant.name)
    outcome = suite.run(part, tmp_path, mutant.file, only=known) if known else None
    if outcome is None or not killer(outcome):
        outcome = suite.run(part, tmp_path, mutant.file)
    record_property("mutant", (mutant.name, mutant.file, killer(outcome) or "SURVIVED"))
    assert killer(outcome), outcome.output


@pytest.mark.parametrize("part", suite.PARTS)
def test_without_a_fault_the_same_run_passes(part: str, tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "batchnorm", ignore=CACHES)
    outcome = suite.run(part, tmp_path)
    assert outcome.code == pytest.ExitCode.OK, outcome.output
    assert " passed" in outcome.output


@pytest.mark.parametrize("part", suite.PARTS)
def test_a_run_that_breaks_down_kills_nothing(part: str, tmp_path: Path) -> None:
    (tmp_path / "batchnorm").mkdir()
    (tmp_path / "batchnorm" / "__init__.py").write_text("raise RuntimeError('the copy is broken')")
    outcome = suite.run(part, tmp_path)
    assert outcome.code != pytest.ExitCode.OK
    assert "the copy is broken" in outcome.output
    assert killer(outcome) is None


def test_a_fault_whose_text_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="holds 0 times: no such line"):
        write_mutant(Mutant("rotten", "layout.py", "no such line", ""), tmp_path)


def test_every_fault_changes_the_text() -> None:
    assert [m.name for m in EVERY if m.old == m.new] == []
    assert len({m.name for m in EVERY}) == len(EVERY)
