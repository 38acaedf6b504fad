"""Signals at any moment, and terminals of all kinds."""

import json
import random
import signal
from collections.abc import Iterator

from attack.attempt import BAD_INPUT, FINE, NOBODY_READS, WRONG, Attempt, may
from attack.files import FOLD, MEASURED, OWN, RECALIBRATE, run_of_bench
from attack.own_code import BATCH_SIZE, OLD
from attack.tables import tables

STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
STUDY = """
from batchnorm.study import lab, runner
from batchnorm.study.design import Settings
runner.advised = lambda study, setting: setting
Settings.steps = property(lambda _: 60)
Settings.short_steps = property(lambda _: 60)
"""
REPEATED = """
from batchnorm.surgery import factory
once = factory._write_weights
def again(model, path, *rest):
    for _ in range(300):
        once(model, path)
    return once(model, path)
factory._write_weights = again
"""


def attempts() -> Iterator[Attempt]:
    """Yield them all."""
    yield from _signals()
    yield from _terminals()


def _signals() -> Iterator[Attempt]:
    drawn = random.Random(0)
    files = {"theirs.py": OWN}
    table = {"t.csv": tables()["plain.csv"]}
    study = ("study", "t.csv", "--target", "y", "--claims", "speed", "--seeds", "3", "--quick", "--out", "report")
    commands = (
        ((*RECALIBRATE, "--out", "x.pt"), {**files, "x.pt": OLD}, ["x.pt"], 0.6, REPEATED, 25),
        ((*FOLD, "--out", "x.safetensors"), {**files, "x.safetensors": OLD}, ["x.safetensors"], 0.6, REPEATED, 25),
        ((*FOLD, "--out", "x.onnx"), {**files, "x.onnx": OLD}, ["x.onnx"], 3.0, "", 6),
        ((*FOLD, "--out", "x.pt2"), {**files, "x.pt2": OLD}, ["x.pt2"], 2.0, "", 6),
        ((*BATCH_SIZE, "--budget", "2", "--json", "--out", "x.svg"), {**files, "x.svg": OLD}, ["x.svg"], 3.0, "", 12),
        (("bench", "--shapes", "64x3", "--ops", "inference", "--contenders", "torch", "--rounds", "300", "--threads",
          "1", "--out", "run", "--json"), {"run.txt": OLD}, ["run.txt", "run.json"], 6.0, "", 4),
        ((*study, "--jobs", "2"), table, ["report/"], 12.0, STUDY, 3),
        (("study", "t.csv", "--target", "y", "--check"), table, [], 0.4, "", 5),
        (("info",), {}, [], 0.2, "", 5),
    )  # fmt: skip
    for command, laid, outputs, most, prepare, count in commands:
        for sent, status in STATUSES.items():
            for _ in range(count):
                yield Attempt(
                    "signals", command, may(status, FINE, -sent), laid, outputs, sent, drawn.uniform(0.0, most),
                    prepare=prepare,
                )  # fmt: skip


def _terminals() -> Iterator[Attempt]:
    run = {"run.json": json.dumps(run_of_bench()).encode(), "theirs.py": OWN, "t.csv": tables()["acts.csv"]}
    commands = (
        ("info",), ("info", "--json"), ("--help",), ("batch-size", "--help"), ("bench", "--from", "run.json"),
        ("bench", "--from", "run.json", "--json"), ("bench", "--from", "nowhere\x1b[31m.json"),
        ("study", "t.csv", "--target", "y", "--check"), ("study", "t.csv", "--target", "y", "--check", "--json"),
        ("study", "--list"), (*FOLD, "--out", "x.pt"), (*RECALIBRATE, "--out", "x.pt", "--json"),
        (*BATCH_SIZE, "--budget", "0.3"), ("batch-size", "t.csv", "--target", "y", "--budget", "0.3", "--json"),
    )  # fmt: skip
    for command in commands:
        right = may(BAD_INPUT) if "nowhere\x1b[31m.json" in command else may(FINE)
        outputs = ["x.pt"] if "x.pt" in command else []
        for encoding in ("ascii", "latin-1", "cp1252", "utf-8", "utf-16", "shift_jis"):
            yield Attempt("terminals", command, right, run, outputs, encoding=encoding)
        for columns in ("1", "20", "500", "x"):
            yield Attempt("terminals", command, right, run, outputs, environment={"COLUMNS": columns})
        for variables in ({"TERM": "dumb"}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"LC_ALL": "C"}, {"HOME": "/"}):
            forced = "FORCE_COLOR" in variables
            yield Attempt(
                "terminals", command, right, run, outputs, output="terminal" if forced else "pipes",
                environment=variables,
            )  # fmt: skip
        for output in ("terminal", "closed"):
            yield Attempt("terminals", command, right, run, outputs, output=output)
        unread = {"renewed": outputs, "says": b"" if BAD_INPUT in right else b"the answer cannot be printed"}
        for variables in ({}, {"PYTHONUNBUFFERED": "1"}):
            yield Attempt(
                "terminals", command, may(BAD_INPUT), run, outputs, output="full", environment=variables, **unread
            )
        broken = right if BAD_INPUT in right else may(NOBODY_READS)
        yield Attempt("terminals", command, broken, run, outputs, renewed=outputs, output="broken")
    whole = ("bench", "--from", "run.json")
    content = {"run.json": MEASURED.read_bytes()}
    for output in ("pipes", "terminal", "closed"):
        yield Attempt("terminals", whole, may(FINE, WRONG), content, output=output)
