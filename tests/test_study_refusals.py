"""What `batchnorm study` refuses: exit status 2, one line that names the way out, nothing changed on disk."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from batchnorm.cli import app
from batchnorm.study import lab
from batchnorm.study.folder import MARKS

TABLE = "table.csv"
AT = ["--target", "y", "--jobs", "1"]
CODE = """
import sys
import numpy as np, torch
from torch import nn
def data():
    x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
    return x, (x.sum(1) > 0).astype(int)
def model(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
def raising(): raise RuntimeError("out of\\ncheese \\x1b[31m[/red]")
def exiting(): sys.exit(0)
def nothing(): return None
def text(): return "x", "y"
def three(): return 1, 2, 3
def uneven(): return data()[0], data()[1][:50]
def empty(): return np.zeros((0, 4)), np.zeros(0, dtype=int)
def few(): return np.zeros((5, 4)), np.arange(5)
def not_a_number(): return np.full((60, 4), np.nan), data()[1]
def one_class(): return data()[0], np.zeros(60, dtype=int)
def no_features(): return np.zeros((60, 0)), data()[1]
def wrong_outputs(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
def wrong_inputs(): return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
def no_parameters(): return nn.Flatten()
def linear(): return nn.Linear(4, 2)
class Exiting(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = model()
    def forward(self, x): sys.exit(0)
class Raising(Exiting):
    def forward(self, x): raise KeyError("no such key")
"""
FOREIGN = {
    "exits.py": "import sys\nsys.exit(0)\n",
    "raises.py": "raise ValueError('a module\\nof two lines')\n",
    "wrong_syntax.py": "def model(:\n",
}
TABLES = {
    TABLE: "x,z,y\n" + "".join(f"{i % 7},{(i * i) % 11},{'ab'[i % 7 > 3]}\n" for i in range(80)),
    "empty.csv": "",
    "no_rows.csv": "x,y\n",
    "one_class.csv": "x,y\n" + "".join(f"{i % 5},a\n" for i in range(60)),
    "no_columns.csv": "y\n" + "".join(f"{'ab'[i % 2]}\n" for i in range(60)),
    "few.csv": "x,y\n1,a\n2,b\n3,a\n",
    "binary.parquet": "PAR1 and nothing else",
}
CONFIGS = {
    "unknown": ("sed = 3", "there is no option 'sed'"),
    "unknown in the table": ("[study]\nsedes = 3", "there is no option 'sedes'"),
    "the file itself": ('config = "study.toml"', "there is no option 'config'"),
    "another table": ("[other]\nx = 1", "there is no option 'other'"),
    "no table": ("study = 3", "study must be a table, [study], got 3"),
    "text for an integer": ('seeds = "12"', "seeds must be an integer, got '12'"),
    "truth for an integer": ("seeds = true", "seeds must be an integer, got True"),
    "number for an integer": ("seeds = 1.5", "seeds must be an integer, got 1.5"),
    "integer for a truth": ("quick = 1", "quick must be true or false, got 1"),
    "text for a truth": ('quick = "yes"', "quick must be true or false, got 'yes'"),
    "integer for a text": ("target = 3", "target must be a text, got 3"),
    "list for a text": ('target = ["y"]', "target must be a text, got ['y']"),
    "table for a text": ("[study.target]\ny = 1", "target must be a text, got {'y': 1}"),
    "truth in a list": ("drop = [true]", "drop must be a list, or a text, got [True]"),
    "list in a list": ("hidden = [[100]]", "hidden must be a list, or a text, got [[100]]"),
    "date for a list": ("claims = 2026-01-01", "claims must be a list, or a text"),
    "twice": ("batch-size = 20\nbatch_size = 30", "batch_size is set twice"),
    "above and below": ("seeds = 6\n[study]\nseeds = 6", "seeds is set twice"),
    "not TOML": ("seeds: 3", "cannot be read: "),
    "an unknown optimizer": ('optimizer = "lion"', "--optimizer"),
    "too few seeds": ("seeds = 2", "--seeds"),
    "an unknown claim": ('claims = ["speed", "sped"]', "there is no claim 'sped'"),
    "no widths": ("hidden = [0]", "--hidden must be 1 to 20 layers of 1 to 4,096 units each, got '0'"),
}
OPTIONS = {
    "unknown option": (["--nope"], "No such option: --nope"),
    "no value": (["--target"], "--target"),
    "two tables": ([TABLE, TABLE], "table.csv"),
    "seeds too few": (["--seeds", "2"], "--seeds"),
    "seeds too many": (["--seeds", "101"], "--seeds"),
    "seeds no number": (["--seeds", "x"], "--seeds"),
    "seeds no integer": (["--seeds", "6.5"], "--seeds"),
    "seeds empty": (["--seeds", ""], "--seeds"),
    "seed below zero": (["--seed", "-1"], "--seed"),
    "seed too large": (["--seed", "99999999999999999999"], "--seed"),
    "seed no number": (["--seed", "x"], "--seed"),
    "batch of one": (["--batch-size", "1"], "--batch-size"),
    "batch below zero": (["--batch-size", "-60"], "--batch-size"),
    "batch no number": (["--batch-size", "sixty"], "--batch-size"),
    "optimizer": (["--optimizer", "lion"], "--optimizer"),
    "metric": (["--metric", "mse"], "--metric"),
    "activation": (["--activation", "swish"], "--activation"),
    "backend": (["--backend", "spark"], "--backend"),
    "task": ([TABLE, "--target", "y", "--task", "ranking"], "--task"),
    "no jobs": (["--jobs", "0"], "--jobs"),
    "jobs below zero": (["--jobs", "-2"], "--jobs"),
    "jobs no number": (["--jobs", "all"], "--jobs"),
    "jobs unbounded": (["--jobs", "100000"], "--jobs must be at most"),
    "hidden empty": (["--hidden", ""], "--hidden must be widths with commas between, such as 100,100,100, got ''"),
    "hidden no numbers": (["--hidden", "wide"], "got 'wide'"),
    "hidden gap": (["--hidden", "100,,100"], "got '100,,100'"),
    "hidden comma": (["--hidden", "100,"], "got '100,'"),
    "hidden semicolons": (["--hidden", "100;100"], "got '100;100'"),
    "hidden below zero": (["--hidden", "100,-3"], "got '100,-3'"),
    "hidden fraction": (["--hidden", "1.5"], "got '1.5'"),
    "hidden zero": (["--hidden", "100,0"], "--hidden must be 1 to 20 layers of 1 to 4,096 units each, got '100,0'"),
    "hidden other digits": (["--hidden", "１００"], "got '１００'"),
    "hidden too wide": (["--hidden", "5000"], "got '5000'"),
    "hidden much too wide": (["--hidden", "9" * 5000], "got '9999"),
    "hidden too deep": (["--hidden", ",".join(["8"] * 21)], "1 to 20 layers"),
    "no claim": (["--claims", ""], "--claims names no claim; there are: "),
    "claims of commas": (["--claims", " , ,"], "--claims names no claim"),
    "unknown claim": (["--claims", "sped"], "there is no claim 'sped'; there are: "),
    "known and unknown claim": (["--claims", "speed,sped"], "there is no claim 'sped'"),
    "claims by spaces": (["--claims", "speed score"], "there is no claim 'speed score'"),
    "claims in capitals": (["--claims", "Speed"], "there is no claim 'Speed'"),
    "model no colon": (["--model", "own"], "`--model` must be written package.module:factory, got 'own'"),
    "model a colon": (["--model", ":"], "`--model` must be written package.module:factory, got ':'"),
    "model no factory": (["--model", "own:"], "`--model` must be written"),
    "model no module": (["--model", ":f"], "`--model` must be written"),
    "model empty": (["--model", ""], "`--model` must be written"),
    "model two colons": (["--model", "own:a:b"], "`--model` must be written"),
    "model a file": (["--model", "own.py:model"], "`--model` names a module, not its file: write own:model"),
    "model a file alone": (["--model", "deep/own.py"], "write deep.own:factory"),
    "model a path": (["--model", "./own:model"], "`--model` must be written"),
    "model with spaces": (["--model", "my own:model"], "`--model` must be written"),
    "model nowhere": (["--model", "no_such_module:f"], "there is no module 'no_such_module', here or installed"),
    "data no colon": (["--data", "own"], "`--data` must be written"),
    "data nowhere": (["--data", "no_such_module:f"], "there is no module 'no_such_module'"),
    "loss no colon": (["--loss", "own"], "`--loss` must be written"),
    "model and hidden": (["--model", "own:model", "--hidden", "8"], "leave them out with --model"),
    "model and activation": (["--model", "own:model", "--activation", "relu"], "leave them out with --model"),
    "table and data": ([TABLE, "--data", "own:data"], "name a table or --data, not both"),
    "target without table": (["--target", "y"], "--target is for a table: name its file too"),
    "task without table": (["--task", "regression"], "--task is for a table"),
    "drop without table": (["--drop", "x"], "--drop is for a table"),
    "header without table": (["--no-header"], "--no-header is for a table"),
    "check without table": (["--check"], "--check is for a table"),
    "no file": (["nowhere.csv", *AT], "nowhere.csv cannot be read: No such file or directory"),
    "a folder": ([".", *AT], ". is a folder; name a file"),
    "a name too long": (["a" * 3000, *AT], "cannot be read: File name too long"),
    "a name with a zero": (["a\0b", *AT], "embedded null byte"),
    "below a file": ([f"{TABLE}/x.csv", *AT], "cannot be read: Not a directory"),
    "config nowhere": (["--config", "nowhere.toml"], "--config nowhere.toml cannot be read: No such file"),
    "config a folder": (["--config", "."], "--config . cannot be read: "),
    "config not text": (["--config", "bytes.toml"], "--config bytes.toml cannot be read: "),
    "out a file": (["--out", TABLE], "--out table.csv cannot be a folder, as"),
    "out below a file": (
        ["--out", f"{TABLE}/deep/report"],
        "cannot be written: Not a directory; name another folder with --out",
    ),
    "out too long": (["--out", "a" * 3000], "cannot be written: File name too long; name another folder with --out"),
    "out with a zero": (["--out", "a\0b"], "embedded null byte"),
    "tensorboard a file": (["--tensorboard", TABLE], "--tensorboard table.csv cannot be a folder"),
    "tensorboard below a file": (["--tensorboard", f"{TABLE}/x"], "table.csv is a file"),
}
AFTER_IMPORTS = {
    "no column": ([TABLE, "--target", "salary", "--jobs", "1"], "salary"),
    "no target": ([TABLE, "--jobs", "1"], "--target"),
    "column to drop": ([TABLE, *AT, "--drop", "w"], "w"),
    "nothing left": ([TABLE, *AT, "--drop", "x", "--drop", "z"], ""),
    "empty": (["empty.csv", *AT], "empty.csv"),
    "no rows": (["no_rows.csv", *AT], "no_rows"),
    "one class": (["one_class.csv", *AT], "one class"),
    "no columns": (["no_columns.csv", *AT], ""),
    "few rows": (["few.csv", *AT], "few"),
    "damaged": (["binary.parquet", *AT], "binary.parquet cannot be read"),
    "numbers wanted": ([TABLE, *AT, "--task", "regression"], "regression"),
    "metric of another task": ([TABLE, *AT, "--metric", "r2"], "--metric r2 does not suit classification"),
    "batch too large": (["--batch-size", "100000", "--jobs", "1"], "--batch-size must be at most 1078"),
}
FACTORIES = {
    "data raising": ("data", "own:raising", "RuntimeError: out of cheese [/red]"),
    "data exiting": ("data", "own:exiting", "sys.exit"),
    "data missing": ("data", "own:nix", "AttributeError"),
    "data nothing": ("data", "own:nothing", "NoneType"),
    "data text": ("data", "own:text", "own:text"),
    "data three": ("data", "own:three", "own:three"),
    "data uneven": ("data", "own:uneven", ""),
    "data empty": ("data", "own:empty", ""),
    "data few": ("data", "own:few", ""),
    "data NaN": ("data", "own:not_a_number", ""),
    "data one class": ("data", "own:one_class", ""),
    "data no features": ("data", "own:no_features", ""),
    "data exits when imported": ("data", "exits:data", "sys.exit"),
    "data raises when imported": ("data", "raises:data", "ValueError: a module of two lines"),
    "data of wrong syntax": ("data", "wrong_syntax:data", "SyntaxError"),
    "model raising": ("model", "own:raising", "RuntimeError: out of cheese [/red]"),
    "model exiting": ("model", "own:exiting", "sys.exit"),
    "model missing": ("model", "own:nix", "AttributeError"),
    "model nothing": ("model", "own:nothing", "own:nothing"),
    "model outputs": ("model", "own:wrong_outputs", "own:wrong_outputs"),
    "model inputs": ("model", "own:wrong_inputs", "own:wrong_inputs"),
    "model no parameters": ("model", "own:no_parameters", "own:no_parameters"),
    "model no hidden layer": ("model", "own:linear", "own:linear"),
    "model forward exits": ("model", "own:Exiting", "sys.exit"),
    "model forward raises": ("model", "own:Raising", "KeyError"),
    "model exits when imported": ("model", "exits:model", "sys.exit"),
    "model raises when imported": ("model", "raises:model", "ValueError: a module of two lines"),
    "model of wrong syntax": ("model", "wrong_syntax:model", "SyntaxError"),
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tables, the user's code, and the report of an earlier study in its usual folder."""
    monkeypatch.setattr(lab, "train", lambda *_: pytest.fail("refused too late: something has been trained"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name, text in {**TABLES, **FOREIGN, "own.py": CODE}.items():
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "bytes.toml").write_bytes(b"seeds = '\xff'")
    (tmp_path / "report" / "runs").mkdir(parents=True)
    for name, mark in MARKS.items():
        (tmp_path / "report" / name).write_text(mark, "utf-8")
    earlier = {"command": "batchnorm study", "data": {"name": "earlier", "fingerprint": "0"}}
    (tmp_path / "report" / "results.json").write_text(json.dumps(earlier), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for module in ("own", "exits", "raises", "wrong_syntax"):
        sys.modules.pop(module, None)
    return tmp_path


def state(folder: Path) -> dict[str, str]:
    """Return every file and folder, with what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def refusal(place: Path, *arguments: object) -> str:
    """Return the line that refuses a command; fail unless it is one, with status 2, and nothing has changed."""
    before = state(place)
    result = CliRunner().invoke(app, ["study", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert result.stdout == "" or result.stdout.startswith("Loading PyTorch and scikit-learn\n")
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0]
    assert "\x1b" not in lines[0]
    assert state(place) == before
    return lines[0]


@pytest.mark.parametrize("case", OPTIONS)
def test_options(place: Path, case: str) -> None:
    arguments, message = OPTIONS[case]
    assert message in refusal(place, *arguments)


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(place: Path, case: str) -> None:
    text, message = CONFIGS[case]
    (place / "study.toml").write_text(text, "utf-8")
    assert message in refusal(place, "--config", "study.toml")


@pytest.mark.parametrize("case", AFTER_IMPORTS)
def test_tables(place: Path, case: str) -> None:
    arguments, message = AFTER_IMPORTS[case]
    assert message in refusal(place, *arguments)


@pytest.mark.parametrize("case", FACTORIES)
def test_factories(place: Path, case: str) -> None:
    kind, name, message = FACTORIES[case]
    others = [] if kind == "data" else ["--data", "own:data"]
    assert message in refusal(place, *others, f"--{kind}", name, "--jobs", "1", "--batch-size", "20")


@pytest.mark.parametrize("name", MARKS)
def test_files_that_no_study_wrote(place: Path, name: str) -> None:
    (place / "mine").mkdir()
    (place / "mine" / name).write_text("mine", "utf-8")
    for more in ([], ["--overwrite"]):
        line = refusal(place, "--out", "mine", *more)
        assert f"mine/{name} was not written by a study; name another folder with --out" in line


@pytest.mark.parametrize("name", [*MARKS, "runs"])
def test_what_stands_in_the_way(place: Path, name: str) -> None:
    (place / "mine").mkdir()
    if name == "runs":
        (place / "mine" / name).write_text("mine", "utf-8")
        assert "mine/runs is not a folder of runs" in refusal(place, "--out", "mine")
    else:
        (place / "mine" / name).mkdir()
        assert f"mine/{name} was not written by a study" in refusal(place, "--out", "mine")


def test_a_folder_that_leads_to_itself(place: Path) -> None:
    (place / "around").symlink_to("around")
    assert "cannot be written: Too many levels of symbolic links" in refusal(place, "--out", "around")


def test_the_report_of_other_data(place: Path) -> None:
    line = refusal(place, TABLE, *AT)
    assert line == (
        "error: report holds the report of other data, earlier; name another folder with --out, or replace it with "
        "--overwrite"
    )
    (place / "report" / "results.json").unlink()
    (place / "report" / "runs" / f"00000000-{'0' * 24}.json").write_text("{}", "utf-8")
    assert "report/runs holds runs of other data; name another folder with --out" in refusal(place, TABLE, *AT)


def test_a_damaged_report(place: Path) -> None:
    (place / "report" / "results.json").write_text('{"command": "batchnorm st', "utf-8")
    assert "results.json is damaged" in refusal(place, TABLE, *AT)


@pytest.mark.parametrize("module", ["ray", "distributed", "tensorboard"])
def test_what_is_not_installed(place: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    from batchnorm.study import options

    monkeypatch.setattr(options, "find_spec", lambda name: None)
    wanted = {"ray": ["--backend", "ray"], "distributed": ["--backend", "dask"], "tensorboard": ["--tensorboard", "t"]}
    extra = "tensorboard" if module == "tensorboard" else "cluster"
    assert refusal(place, *wanted[module]).endswith(
        f"`{' '.join(wanted[module][:2]) if extra == 'cluster' else '--tensorboard'}` needs {module}, which is not "
        f"installed: pip install 'batchnorm[{extra}]'"
    )


FULL = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.dont_write_bytecode = True
from batchnorm.cli import app
app(["study", "--out", "full"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_folder_without_room(place: Path) -> None:
    before = state(place)
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=False, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --out full cannot be written: File too large; name another folder with --out\n"
    assert state(place) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no file system that nobody can write")
def test_a_file_system_that_is_read_only(place: Path) -> None:
    assert "--out /proc/deep/report cannot be written: " in refusal(place, "--out", "/proc/deep/report")


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="everything is writable for root")
def test_a_folder_that_is_read_only(place: Path) -> None:
    (place / "locked").mkdir(mode=0o500)
    assert "cannot be written: Permission denied" in refusal(place, "--out", "locked")
    assert "cannot be written: Permission denied" in refusal(place, "--out", "locked/deep")


LIGHT = """
import sys
from batchnorm.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    heavy = {"torch", "sklearn", "scipy", "pandas", "matplotlib", "numpy", "joblib"} & set(sys.modules)
    print(end.code, *sorted(heavy))
"""
CHEAP = {
    "option": ["--nope"],
    "claims": ["--claims", "sped"],
    "model": ["--model", "no_such_module:f"],
    "out": ["--out", TABLE],
    "table": ["nowhere.csv"],
    "jobs": ["--jobs", "100000"],
}


@pytest.mark.parametrize("case", CHEAP)
def test_cheap_checks_come_before_heavy_imports(place: Path, case: str) -> None:
    command = [sys.executable, "-c", LIGHT, "study", *CHEAP[case]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    assert done.stdout == "2\n"
    assert done.stderr.startswith("error: ")
