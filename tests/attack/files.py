"""Outputs, disks that fill up, checkpoints of all kinds, and the results that `bench --from` reads."""

import io
import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attack.attempt import BAD_INPUT, FINE, WRONG, Attempt, may
from attack.own_code import BATCH_SIZE, OLD, THEIRS, module

OWN = module("nowhere", "pass")
FOLD = ("fold", "--model", "theirs:model", "--inputs", "theirs:inputs")
RECALIBRATE = ("recalibrate", "--model", "theirs:model", "--data", "theirs:batches")
SMALL = (*BATCH_SIZE, "--budget", "0.3", "--candidates", "8,16")
MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "layers.json"
PLACES = {  # where an output is to go: what is there before, and whether it can
    "new": ({}, True),
    "old": ({"{}": OLD}, True),
    "link": ({"{}@": b"target", "target": OLD}, True),
    "folder": ({"{}/": b""}, False),
    "pipe": ({"{}|": b""}, False),
    "nowhere/{}": ({}, False),
    "afile/{}": ({"afile": OLD}, False),
    "/proc/{}": ({}, False),
    "/dev/full/{}": ({}, False),
    "a" * 300 + "{}": ({}, False),
    "ä" * 100 + "{}": ({}, True),
    "\x1b]0;t\x07{}": ({}, True),
    "[red]x[bold]{}": ({}, True),
    "\udcff{}": ({}, True),
    "a b 'c' \"d\"{}": ({}, True),
    "nul\x00{}": ({}, False),
}
NUMBERS: list[Any] = [None, -1, 0, 1e308, 10**400, "1", True, [], {}, float("nan"), "\x1b[2J", 2**70, 0.5]


def attempts() -> Iterator[Attempt]:
    """Yield them all."""
    yield from _outputs()
    yield from _disks()
    yield from _checkpoints()
    yield from _results()


def run_of_bench() -> dict[str, Any]:
    """Return a small run, as it is committed."""
    found = json.loads(MEASURED.read_text("utf-8"))
    found["rows"] = found["rows"][:12]
    return found


def _writers() -> Iterator[tuple[tuple[str, ...], str, str, dict[str, bytes]]]:
    """Yield commands, their option for a file, its ending, and the files that they read."""
    for ending in ("pt", "safetensors", "ckpt"):
        yield RECALIBRATE, "--out", ending, {"theirs.py": OWN}
    for ending in ("pt", "safetensors", "onnx", "pt2"):
        yield FOLD, "--out", ending, {"theirs.py": OWN}
    for ending in ("svg", "png", "pdf"):
        yield SMALL, "--out", ending, {"theirs.py": OWN}
    read = ("bench", "--from", "run.json")
    for ending in ("svg", "png"):
        yield read, "--chart", ending, {"run.json": json.dumps(run_of_bench()).encode()}


def _outputs() -> Iterator[Attempt]:
    for command, option, ending, files in _writers():
        for place, (there, good) in PLACES.items():
            name = place.format(f"x.{ending}") if "{}" in place else f"x.{ending}"
            laid = {key.format(name): content for key, content in there.items()}
            written = [] if not good else ["target", name] if place == "link" else [name]
            if ending in ("svg", "png", "pdf", "onnx", "pt2") and place.startswith(("a b", "\udcff", "ä")):
                continue  # as slow as the others, and the same code
            statuses = may(FINE) if good else may(BAD_INPUT)
            if option == "--chart" and good:
                statuses |= {BAD_INPUT}  # of a few rows there may be nothing to draw
            yield Attempt(
                "outputs", (*command, option, name, "--json"), statuses, {**files, **laid}, written, seconds=60
            )
    for name in ("run", "torch-2.13", "run.json", "run.txt", ".", "..", "/", "", "a" * 255, "folder"):
        before = {"torch-2.txt": OLD, "torch-2.json": OLD, "run.json": json.dumps(run_of_bench()).encode()}
        good = name in ("run", "torch-2.13", "run.txt", "run.json", "folder")
        stem = name.removesuffix(".json").removesuffix(".txt")
        yield Attempt(
            "outputs", ("bench", "--from", "run.json", "--out", name), may(FINE) if good else may(BAD_INPUT),
            {**before, "folder/": b""}, [f"{stem}.txt", f"{stem}.json"] if good else [],
        )  # fmt: skip


def _disks() -> Iterator[Attempt]:
    for command, option, ending, files in _writers():
        for largest in (0, 100, 1500, 10_000):
            name = f"x.{ending}"
            yield Attempt(
                "disks", (*command, option, name, "--json"), may(FINE, BAD_INPUT), {**files, name: OLD}, [name],
                largest=largest,
            )  # fmt: skip
    run = {"run.json": json.dumps(run_of_bench()).encode()}
    for largest in (0, 100, 3000):
        yield Attempt(
            "disks", ("bench", "--from", "run.json", "--out", "run.2"), may(FINE, BAD_INPUT), {**run, "run.2.txt": OLD},
            ["run.2.txt", "run.2.json"], largest=largest,
        )  # fmt: skip


def _weights() -> dict[str, bytes]:
    """Return checkpoints that fit the user's model, by the name of their file."""
    import torch
    from safetensors.torch import save

    space: dict[str, Any] = {}
    exec(THEIRS.replace("{place!r}", "''").replace("{what}", "pass"), space)
    state = space["model"]().state_dict()
    found: dict[str, bytes] = {"w.safetensors": save(state)}
    for name, content in {
        "w.pt": state,
        "nested.ckpt": {"state_dict": state, "epoch": 3},
        "two.ckpt": {"model": state, "ema": state},
        "module.pt": {f"module.{key}": value for key, value in state.items()},
        "wrong.pt": {key: value[:1] for key, value in state.items() if value.ndim},
        "lacking.pt": {key: value for key, value in state.items() if not key.startswith("b")},
        "integers.pt": {key: value.long() for key, value in state.items()},
        "nan.pt": {key: value * float("nan") if value.is_floating_point() else value for key, value in state.items()},
        "list.pt": [1, 2],
        "nothing.pt": {},
        "texts.pt": {"\x1b[31ma": "x", "[/red]": 1},
    }.items():
        held = io.BytesIO()
        torch.save(content, held)
        found[name] = held.getvalue()
    return found


class _Runs:
    def __reduce__(self) -> Any:
        return __import__("os").system, ("touch executed",)


GOOD = {"w.safetensors", "w.pt", "nested.ckpt", "module.pt", "integers.pt", "nan.pt"}
KEYS = ((), ("--key", "ema"), ("--key", "nowhere"), ("--key", "\x1b[2J[/x]"), ("--prefix", "zz"), ("--key", ""))


def _checkpoints() -> Iterator[Attempt]:
    found = _weights()
    damaged = random.Random(0)
    others = {
        "pickle.pt": pickle.dumps(_Runs()), "empty.pt": b"", "junk.pt": damaged.randbytes(900),
        "text.safetensors": b"no weights", "large header.safetensors": b"\xff" * 8 + b"{}", "folder.pt/": b"",
        "pipe.pt|": b"", "pipe.safetensors|": b"", "nowhere.txt": b"", "dangling.pt@": b"nowhere",
    }  # fmt: skip
    for command in (RECALIBRATE, FOLD):
        for name, content in {**found, **others}.items():
            for more in KEYS:
                good = name in GOOD and not more
                statuses = may(FINE, BAD_INPUT) if more or name in ("nan.pt", "integers.pt") else may(BAD_INPUT)
                if name in others and more:
                    continue
                yield _loading(command, name, content, may(FINE) if good and name != "nan.pt" else statuses, more)
        for name in ("w.pt", "w.safetensors"):
            for _ in range(30):
                content = bytearray(found[name])
                if damaged.random() < 0.5:
                    content = content[: damaged.randrange(len(content))]
                else:
                    for _ in range(damaged.choice((1, 5, 50))):
                        content[damaged.randrange(len(content))] ^= 1 << damaged.randrange(8)
                yield _loading(command, name, bytes(content), may(FINE, BAD_INPUT), ())


def _loading(
    command: tuple[str, ...], name: str, content: bytes, statuses: frozenset[int], more: tuple[str, ...]
) -> Attempt:
    given = name.rstrip("/|@")
    return Attempt(
        "checkpoints", (*command, "--weights", given, *more, "--out", "x.safetensors", "--json"), statuses,
        {"theirs.py": OWN, name: content, "x.safetensors": OLD}, ["x.safetensors"], seconds=30,
    )  # fmt: skip


def _results() -> Iterator[Attempt]:
    """Yield a run with each of its values replaced by others, or left out; and texts that are no run."""
    whole = run_of_bench()
    drawn = random.Random(0)
    spots = [(key,) for key in whole]
    spots += [("machine", key) for key in whole["machine"]] + [("settings", key) for key in whole["settings"]]
    spots += [("rows", 1, key) for key in whole["rows"][1]] + [("rows", 0), ("rows", 1, "shape", 0)]
    for spot in spots:
        for value in [*drawn.sample(NUMBERS, 4), "gone"]:
            run = run_of_bench()
            holder: Any = run
            for key in spot[:-1]:
                holder = holder[key]
            if value == "gone":
                del holder[spot[-1]]
            else:
                holder[spot[-1]] = value
            yield _from(_dumped(run).encode("utf-8", "surrogatepass"), may(FINE, WRONG, BAD_INPUT))
    text = json.dumps(whole).encode()
    others = [
        b"", b"[]", b"{}", b"null", b"3", b'"x"', b"NaN", b"[" * 100_000, b"9" * 10_000, b"\xff\xfe",
        *(text[: drawn.randrange(len(text))] for _ in range(20)), drawn.randbytes(1000), b'{"schema": 2, "rows": []}',
        b'{"schema": 1}', b'{"schema": "\\u001b[31m[/x]"}',
    ]  # fmt: skip
    for content in others:
        yield _from(content, may(BAD_INPUT))
    for name in ("nowhere.json", "folder/", "pipe.json|", "/dev/zero", "", "a" * 300):
        files = {name: b""} if name.endswith(("/", "|")) else {}
        yield Attempt("results", ("bench", "--from", name.rstrip("/|") or "."), may(BAD_INPUT), files, seconds=20)


def _dumped(run: Any) -> str:
    import sys

    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(run)
    finally:
        sys.set_int_max_str_digits(before)


def _from(content: bytes, statuses: frozenset[int]) -> Attempt:
    as_json = ("--json",) if len(content) % 2 else ()
    return Attempt("results", ("bench", "--from", "r.json", *as_json), statuses, {"r.json": content}, seconds=20)
