"""A few hostile command lines of each group keep every rule, and each rule can be broken: `make attack` tries all."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attack.__main__ import attempts, sample
from attack.attempt import BAD_INPUT, FINE, Attempt, Outcome, may
from attack.verdict import RULES, verdict

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")

FEW = 18
OLD = {"old.json": b'{"kept": 1}', "table.csv": b"a,b\n"}
ASKED = Attempt("planted", ("bench", "--json"), may(FINE, BAD_INPUT), outputs=["old.json"])
KEPT = Outcome(FINE, b"{}\n", b"", OLD, OLD)
REFUSED = replace(KEPT, status=BAD_INPUT, out=b"", err=b"error: x must be 1, got 2: write 1\n")
TOLD = replace(ASKED, says=b"x must be 1")
PLANTED: dict[str, list[dict[str, Any]]] = {
    "no_traceback": [{"err": b"Traceback (most recent call last)\nerror: x\n"}, {"err": b"terminate called after\n"}],
    "no_hang": [{"hung": True}],
    "right_status": [{"status": 1}, {"status": -11}],
    "one_line": [{"err": b"error: x\n"}, {"status": BAD_INPUT, "out": b"", "err": b"error: a\nerror: b\n"}],
    "json_is_json": [{"out": b"a batch comes\n{}\n"}, {"out": b""}, {"out": b"NaN\n"}],
    "nothing_acts": [{"out": b'"\x1b[31m"\n'}, {"err": b"\x1b]0;owned\x07"}, {"err": "\u202e".encode()}],
    "files_are_whole": [
        {"after": {"table.csv": b"a,b\n"}},
        {"after": {**OLD, "old.json": b'{"kep'}},
        {"after": {**OLD, "table.csv": b""}},
        {"after": {**OLD, ".old.json.draft": b""}},
    ],
    "no_memory_eaten": [{"peak": 2**34}],
    "nobody_left": [{"left": 1}],
}


def test_files_that_were_to_be_written_are_asked_for() -> None:
    asked = replace(ASKED, renewed=["old.json"], outputs=["old.json", "report/"])
    new = replace(KEPT, after={**OLD, "old.json": b'{"new": 2}', "report/results.json": b"{}"})
    assert verdict(asked, new) == {}
    assert "files_are_whole" in verdict(asked, KEPT)
    assert "files_are_whole" in verdict(asked, replace(new, after={**new.after, "report/results.json": b"{"}))


def test_what_is_well_keeps_every_rule() -> None:
    assert verdict(ASKED, KEPT) == {}
    assert verdict(ASKED, REFUSED) == {}
    assert verdict(ASKED, replace(KEPT, after={**OLD, "old.json": b'{"new": 2}'})) == {}


@pytest.mark.parametrize(("rule", "planted"), [(rule, fault) for rule, faults in PLANTED.items() for fault in faults])
def test_each_rule_can_be_broken(rule: str, planted: dict[str, Any]) -> None:
    assert rule in verdict(ASKED, replace(KEPT, **planted))


def test_an_answer_beside_a_refusal_is_found() -> None:
    asked = replace(ASKED, outputs=[])
    assert "stdout_is_for_results" in verdict(asked, replace(REFUSED, out=b"{}\n"))
    assert verdict(TOLD, REFUSED) == {}
    assert verdict(TOLD, replace(REFUSED, err=b"error: the disk is full\n")).keys() == {"right_reason"}
    assert {*PLANTED, "stdout_is_for_results", "right_reason"} == {rule.__name__ for rule in RULES}


def test_there_are_more_than_a_thousand_of_all_kinds() -> None:
    found = attempts()
    assert len({(a.command, a.after, tuple(a.files.values())) for a in found}) > 1000
    assert {a.signal for a in found} == {None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL}
    assert {a.group for a in sample(FEW)} == {a.group for a in found}


PROGRAM = """
import sys
from attack.__main__ import sample, told, tried
for attempt, outcome, broken in tried(sample({few})):
    print("kept" if not broken else told(attempt, outcome, broken), flush=True)
"""


def test_a_few_of_each_group_keep_every_rule() -> None:
    """In a process of its own, which forks: this one may have threads."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(few=FEW)],
        capture_output=True, text=True, check=False, env=environment, errors="backslashreplace",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line != "kept"] == []
    assert done.stdout.count("kept\n") >= FEW // 2


PLANTED_FAULTS = """
from attack.attempt import Attempt, may
from attack.running import run, warm
from attack.verdict import verdict
warm()
asked = ("bench", "--from", "run.json", "--out", "run")
for fault in {faults!r}:
    print(*verdict(found := Attempt("x", asked, may(2), {{"run.txt": b"old\\n"}}, prepare=fault), run(found)))
"""
IN = "import batchnorm.cli.running as r, os; "
FAULTS = {
    IN + "r.fail = lambda *a: 1 / 0": "no_traceback",
    IN + "r.fail = lambda *a: os.unlink('run.txt') or os._exit(2)": "files_are_whole",
    IN + "r.fail = lambda *a: open('stray', 'w') and os._exit(2)": "files_are_whole",
    IN + "r.fail = lambda *a: os._exit(0)": "right_status",
}


def test_faults_that_are_planted_in_the_command_are_found() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    program = PLANTED_FAULTS.format(faults=list(FAULTS))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    for rule, told in zip(FAULTS.values(), done.stdout.splitlines(), strict=True):
        assert rule in told.split()
