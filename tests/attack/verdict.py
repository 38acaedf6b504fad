"""The rules that every command must keep, whatever it is given. None of them knows what a command should answer."""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from attack.attempt import BAD_INPUT, FINE, WRONG, Attempt, Outcome

GIB = 2**30
MOST_BYTES = 3 * GIB
# What Python and C++ print where nobody has caught something.
CRASHES = re.compile(
    rb"Traceback \(most recent call last\)|Exception ignored|terminate called|Segmentation fault|Fatal Python error"
)
# Whatever acts on a terminal, but for line ends and tabs.
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
STYLES = re.compile(rb"\x1b\[[0-9;]*[mKAGHJ]|\x1b\[\?25[lh]|\r")  # with which rich colours, and moves its bar


def no_traceback(attempt: Attempt, outcome: Outcome) -> str | None:
    """Nothing ends in a traceback or crashes."""
    found = CRASHES.search(outcome.err) or CRASHES.search(outcome.out)
    return f"printed {found.group().decode()!r}" if found else None


def no_hang(attempt: Attempt, outcome: Outcome) -> str | None:
    """Everything ends in its time."""
    return f"still ran after {attempt.seconds:g} s" if outcome.hung else None


def right_status(attempt: Attempt, outcome: Outcome) -> str | None:
    """Bad input is 2, a signal 128 and its number, a wrong result 1, and the rest 0."""
    if outcome.hung or outcome.status in attempt.statuses:
        return None
    return f"status {outcome.status}, not {' or '.join(map(str, sorted(attempt.statuses)))}"


def one_line(attempt: Attempt, outcome: Outcome) -> str | None:
    """Bad input is told in one line on stderr, which is the last, and only bad input is."""
    if attempt.output == "terminal" or outcome.hung or outcome.status < 0 or "--help" in attempt.arguments:
        return None
    lines = [line for line in outcome.err.decode(attempt.encoding, "replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    profiled = "--check" in attempt.arguments and outcome.out and not told  # where stdout says it, beside each column
    if outcome.status == BAD_INPUT and attempt.arguments and not profiled:
        if len(told) != 1:
            return f"{len(told)} lines begin with 'error: '"
        if lines[-1] != told[0] or len(told[0]) <= len("error: "):
            return "the error is not the last line"
    if outcome.status in (FINE, WRONG) and told:
        return f"an error, and status {outcome.status}"
    return None


def json_is_json(attempt: Attempt, outcome: Outcome) -> str | None:
    """With --json, stdout holds one JSON document or, where something went wrong, nothing."""
    if "--json" not in attempt.arguments or attempt.output not in ("pipes",) or outcome.status < 0:
        return None
    if not outcome.out and outcome.status not in (FINE, WRONG):
        return None
    try:
        json.loads(outcome.out.decode(attempt.encoding), parse_constant=_refused)
    except ValueError as error:
        return f"stdout is no JSON: {error}"
    return None


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is none")


def nothing_acts(attempt: Attempt, outcome: Outcome) -> str | None:
    """No text of the user's acts on the terminal."""
    for stream in (outcome.out, outcome.err):
        if attempt.output == "terminal":
            stream = STYLES.sub(b"", stream)
        found = CONTROLS.search(stream.decode(attempt.encoding, "replace").replace("\r\n", "\n"))
        if found:
            return f"printed {found.group()!r}"
    return None


def stdout_is_for_results(attempt: Attempt, outcome: Outcome) -> str | None:
    """Where no answer was found, stdout is empty, but for the progress of a study."""
    if outcome.status != BAD_INPUT or not outcome.out or attempt.output != "pipes" or "study" in attempt.arguments:
        return None
    if (attempt.outputs and attempt.largest is not None) or not attempt.arguments:
        return None  # measured, and then not written
    return "printed an answer, and status 2" if not attempt.outputs else None


def files_are_whole(attempt: Attempt, outcome: Outcome) -> str | None:
    """Each file is the old one or a whole new one; what is not written to stays, and no draft is left behind."""
    for name, content in outcome.before.items():
        if name not in outcome.after:
            return f"{name} is lost"
        if name not in attempt.outputs and outcome.after[name] != content:
            return f"{name} was changed"
    folders = tuple(name for name in attempt.outputs if name.endswith("/"))
    for name in [*attempt.outputs, *(name for name in outcome.after if folders and name.startswith(folders))]:
        new = outcome.after.get(name)
        if new is not None and new != outcome.before.get(name) and (fault := fault_of(name, new)):
            return f"{name} is damaged: {fault}"
    for name in attempt.renewed:
        if outcome.after.get(name) == outcome.before.get(name):
            return f"{name} was not written"
    if outcome.status < 0:  # a signal that leaves Python no time to tidy up
        return None
    known = {*outcome.before, *attempt.outputs}
    strays = [name for name in outcome.after if name not in known and not (folders and name.startswith(folders))]
    return f"left {strays[0]} behind" if strays else None


def right_reason(attempt: Attempt, outcome: Outcome) -> str | None:
    """What is told is what happened, where only one thing can have."""
    return None if attempt.says in outcome.err else f"stderr does not hold {attempt.says!r}"


def no_memory_eaten(attempt: Attempt, outcome: Outcome) -> str | None:
    """Nothing takes memory without end."""
    return f"held {outcome.peak / GIB:.1f} GiB" if outcome.peak > MOST_BYTES else None


def nobody_left(attempt: Attempt, outcome: Outcome) -> str | None:
    """No process outlives the command that has started it."""
    return f"{outcome.left} processes were left behind" if outcome.left else None


def fault_of(name: str, content: bytes) -> str | None:
    """Return what is wrong with a file, by its ending."""
    check = CHECKS.get(name.rpartition(".")[2])
    if check is None:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            return None if check(content) else "it is not of its format"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]


def _weights(content: bytes) -> bool:
    import torch

    return bool(torch.load(io.BytesIO(content), weights_only=True))


def _safetensors(content: bytes) -> bool:
    from safetensors.torch import load

    return bool(load(content))


def _onnx(content: bytes) -> bool:
    import onnx

    onnx.checker.check_model(onnx.load_model_from_string(content))
    return True


def _archive(content: bytes) -> bool:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.testzip() is None


CHECKS: dict[str, Callable[[bytes], Any]] = {
    "pt": _weights,
    "ckpt": _weights,
    "safetensors": _safetensors,
    "onnx": _onnx,
    "pt2": _archive,
    "svg": lambda content: ElementTree.fromstring(content).tag.endswith("svg"),
    "png": lambda content: content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82"),
    "pdf": lambda content: content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF"),
    "json": lambda content: json.loads(content) is not None,
    "txt": lambda content: content.endswith(b"\n") and content.decode("utf-8").strip(),
}

RULES = (
    no_traceback, no_hang, right_status, right_reason, one_line, json_is_json, nothing_acts, stdout_is_for_results,
    files_are_whole, no_memory_eaten, nobody_left,
)  # fmt: skip


def verdict(attempt: Attempt, outcome: Outcome) -> dict[str, str]:
    """Return the rules that are broken, and how."""
    told = {rule.__name__: rule(attempt, outcome) for rule in RULES}
    return {name: fault for name, fault in told.items() if fault is not None}
