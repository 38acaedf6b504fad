"""The command as its users meet it: a study in small, its files, its refusals, its interruption."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from batchnorm.cli import app
from batchnorm.study import Settings, lab, run, runner
from batchnorm.study.claims import chosen_claims
from batchnorm.study.data import Dataset
from batchnorm.study.shipped import digits

EXAMPLES = Path(__file__).parents[1] / "examples"
TABLE = str(EXAMPLES / "placements.csv")
SPEED = ["--claims", "speed", "--quick", "--jobs", "1"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every run short: the machinery is tested here, not the claims."""
    monkeypatch.setattr(Settings, "steps", property(lambda _: 20))
    monkeypatch.setattr(Settings, "short_steps", property(lambda _: 10))


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("small")
def test_every_claim_is_measured_and_reported(tmp_path: Path) -> None:
    code, out, _ = invoke("study", "--quick", "--jobs", "1", "--out", tmp_path / "r")
    assert code == 0
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    page = (tmp_path / "r" / "index.html").read_text()
    assert [c["id"] for c in results["claims"]] == [c.id for c in chosen_claims(None)]
    for claim in results["claims"]:
        assert claim["verdict"] in ("holds", "does not hold", "undecided")
        assert claim["id"] in out
        assert f'id="{claim["id"]}-title"' in page
        assert all(len(effect["samples"]) == 3 for effect in claim["effects"])
    assert "seconds" in json.loads((tmp_path / "r" / "timings.json").read_text())


@pytest.mark.usefixtures("small")
def test_the_same_seed_gives_the_same_file_whatever_the_jobs(tmp_path: Path) -> None:
    texts = []
    for name, jobs in (("a", 1), ("b", 1)):
        run(settings=Settings(seeds=3, quick=True), claims=chosen_claims("speed"), out=tmp_path / name, jobs=jobs)
        texts.append((tmp_path / name / "results.json").read_text())
    assert texts[0] == texts[1]
    (c := tmp_path / "c").mkdir()
    subprocess.run(
        [sys.executable, "-c", SHORT_RUN, str(c)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (c / "results.json").read_text() == texts[0]


SHORT_RUN = """
import sys
from batchnorm.study import Settings, run
from batchnorm.study.claims import chosen_claims
Settings.steps = property(lambda _: 20)
Settings.short_steps = property(lambda _: 10)
run(settings=Settings(seeds=3, quick=True), claims=chosen_claims("speed"), out=sys.argv[1], jobs=2)
"""


@pytest.mark.usefixtures("small")
def test_resuming_trains_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"settings": Settings(seeds=3, quick=True), "claims": chosen_claims("speed"), "jobs": 1}
    run(**arguments, out=tmp_path)
    whole = (tmp_path / "results.json").read_text()
    kept = sorted((tmp_path / "runs").glob("*.json"))
    kept[0].unlink()
    kept[1].write_text("[{")  # as a full disk leaves it
    trained: list[int] = []
    train = lab.train
    monkeypatch.setattr(lab, "train", lambda specs, problem: trained.append(len(specs)) or train(specs, problem))
    run(**arguments, out=tmp_path, resume=True)
    assert len(trained) == 2
    assert (tmp_path / "results.json").read_text() == whole
    run(**arguments, out=tmp_path, resume=True)
    assert len(trained) == 2
    other = Dataset("other", "", digits().x + 1, digits().y, "classification", digits().classes, fixed_goals=(0.5, 0.6))
    run(other, **arguments, out=tmp_path, resume=True)
    assert len(trained) > 2


@pytest.mark.usefixtures("small")
def test_tables_and_json(tmp_path: Path) -> None:
    code, out, _ = invoke("study", TABLE, "--target", "placed", *SPEED, "--out", tmp_path, "--json")
    assert code == 0
    results = json.loads(out)
    assert results["data"]["name"] == "placements"
    assert results["data"]["notes"] == ["cgpa: numbers", "iq: numbers"]
    assert results["claims"][0]["rerun"].endswith("--claims speed")


OWN = """
import numpy as np, torch
from torch import nn
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1, 6, 6)).astype("float32")
    return x, (x.mean((1, 2, 3)) > 0).astype(int)
def values():
    x, _ = data()
    return x, x.mean((1, 2, 3))
def conv(outputs=2):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, outputs))
def normed(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
def regressor(): return conv(1)
class functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(36, 8), nn.Linear(8, 2)
    def forward(self, x): return self.b(torch.relu(self.a(x.flatten(1))))
def untracked():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36, track_running_stats=False), nn.Linear(36, 2))
def wrong_shape(): return conv(3)
def no_model(): return 3
def broken(): raise RuntimeError("out of cheese")
def linear(): return nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_module.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_module", None)
    return tmp_path


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("data", "model"), [("data", "conv"), ("data", "normed"), ("values", "regressor"), ("data", "functional")]
)
def test_models_of_ones_own(own: Path, data: str, model: str) -> None:
    code, _, err = invoke(
        "study",
        "--data",
        f"own_module:{data}",
        "--model",
        f"own_module:{model}",
        "--quick",
        "--jobs",
        "1",
        "--batch-size",
        20,
    )
    assert code == 0, err
    claims = {c["id"]: c for c in json.loads((own / "report" / "results.json").read_text())["claims"]}
    assert claims["speed"]["verdict"] != "not measured"
    assert claims["initialization"]["verdict"] == "not measured"
    assert (claims["placement"]["verdict"] == "not measured") == (model == "normed")
    assert claims["train-predict"]["effects"][0]["verdict"] == "holds"


BAD = {
    "no column": ([TABLE, "--target", "salary"], "there is no column 'salary'; the table has: cgpa, iq, placed"),
    "no target": ([TABLE], "name the column to predict with --target"),
    "no file": (["nowhere.csv", "--target", "a"], "nowhere.csv cannot be read: No such file"),
    "no claim": (["--claims", "sped"], "there is no claim 'sped'; there are: speed"),
    "no colon": (["--model", "own_module"], "`--model` must be written package.module:factory, got 'own_module'"),
    "no module": (["--model", "no_such:f"], "`--model no_such:f` cannot be imported: ModuleNotFoundError"),
    "no factory": (["--model", "own_module:nix"], "cannot be imported: AttributeError"),
    "broken": (["--model", "own_module:broken"], "`--model own_module:broken` failed: RuntimeError: out of cheese"),
    "no model": (["--model", "own_module:no_model"], "must return a torch.nn.Module, got int"),
    "no data": (["--data", "own_module:no_model"], "must return a pair (x, y) of arrays, got int"),
    "unfit": (["--model", "own_module:conv"], "does not take x of shape (4, 64)"),
    "outputs": (
        ["--data", "own_module:data", "--model", "own_module:wrong_shape"],
        "must return shape (4, 2), got (4, 3)",
    ),
    "untracked": (["--data", "own_module:data", "--model", "own_module:untracked"], "keeps no running statistics"),
    "no hidden": (["--data", "own_module:data", "--model", "own_module:linear"], "no layer to normalise before"),
    "batch size": (["--batch-size", "100000"], "--batch-size must be at most 1078, the rows trained on, got 100000"),
    "seeds": (["--seeds", "1"], "should be greater than or equal to 3"),
    "optimizer": (["--optimizer", "lion"], "lion"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_status_2_and_nothing_written(own: Path, case: str) -> None:
    arguments, message = BAD[case]
    (own / "report").mkdir()
    (own / "report" / "index.html").write_text("mine")
    before = sorted(own.rglob("*"))
    code, out, err = invoke("study", *arguments)
    assert code == 2
    assert message in " ".join(err.split()).replace("│ ", "")
    assert "Traceback" not in out + err
    assert [p for p in sorted(own.rglob("*")) if "__pycache__" not in str(p)] == before
    assert (own / "report" / "index.html").read_text() == "mine"


@pytest.mark.usefixtures("small")
def test_a_page_that_is_not_ours_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    (tmp_path / "file").touch()
    code, _, err = invoke("study", *SPEED, "--out", tmp_path)
    assert (code, (tmp_path / "index.html").read_text()) == (2, "mine")
    assert "was not written by a study; name another folder with --out" in " ".join(err.split())
    code, _, err = invoke("study", *SPEED, "--out", tmp_path / "file" / "below")
    assert (code, "cannot be made: Not a directory" in " ".join(err.split())) == (2, True)


# A shell that starts a job in the background has it ignore interrupts, and so would this one.
LISTENING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from batchnorm.cli import app
app()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends an interrupt as POSIX does")
def test_an_interrupted_study_keeps_what_is_finished(tmp_path: Path) -> None:
    arguments = ["study", "--jobs", "2", "--claims", "speed", "--out", str(tmp_path)]
    command = [sys.executable, "-c", LISTENING, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as p:
        end = time.monotonic() + 120
        while not list((tmp_path / "runs").glob("*.json")) and time.monotonic() < end:
            time.sleep(0.2)
        os.killpg(p.pid, signal.SIGINT)
        printed, _ = p.communicate(timeout=60)
    assert p.returncode == 130
    assert "go on with --resume" in " ".join(printed.split())
    assert "Traceback" not in printed
    assert list((tmp_path / "runs").glob("*.json"))
    assert not (tmp_path / "results.json").exists()


def test_info_and_version() -> None:
    code, out, _ = invoke("info", "--json")
    assert code == 0
    assert [kernel["name"] for kernel in json.loads(out)["kernels"]] == ["native", "eager"]
    assert all(kernel["reason"] for kernel in json.loads(out)["kernels"])
    assert invoke("info")[0] == 0
    assert invoke("--version")[1].startswith("batchnorm ")


def test_help_names_every_option() -> None:
    code, out, _ = invoke("study", "--help")
    assert code == 0
    for option in ("--target", "--data", "--model", "--claims", "--seeds", "--out", "--quick", "--json", "--resume"):
        assert option in out


def test_json_has_no_nan() -> None:
    assert lab.plain({"a": (math.nan, [math.inf, 1.0])}) == {"a": [None, [None, 1.0]]}


def test_unknown_versions_are_left_out() -> None:
    assert {"python", "torch"} <= set(runner._versions())
