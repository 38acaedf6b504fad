"""The command as its users meet it: a study in small, what it prints, its files, and going on from them."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from batchnorm.cli import app
from batchnorm.cli import study as options_of
from batchnorm.study import Settings, command, lab, run, runner
from batchnorm.study.claims import all_claims, chosen_claims
from batchnorm.study.course import Plan
from batchnorm.study.data import Dataset
from batchnorm.study.findings import Finding
from batchnorm.study.kept import Kept
from batchnorm.study.networks import ACTIVATIONS
from batchnorm.study.optimizers import OPTIMIZERS
from batchnorm.study.options import Options, from_toml
from batchnorm.study.scores import METRICS
from batchnorm.study.screen import MARKS, Screen, plan_line
from batchnorm.study.shipped import breast_cancer, digits
from batchnorm.study.training import Outcome, Problem, Spec
from batchnorm.study.workers import BACKENDS

TABLE = str(Path(__file__).parents[1] / "examples" / "placements.csv")
SHORT = ["--claims", "speed", "--quick", "--jobs", "1", "--seeds", "3"]
SPEED = [TABLE, "--target", "placed", *SHORT]
X = np.random.default_rng(0).normal(size=(120, 4)).astype("float32")
TINY = Dataset("tiny", "made up", X, (X.sum(1) > 0).astype(int), "classification", ("a", "b"))
SMALL = {"settings": Settings(seeds=3, quick=True, batch_size=30), "claims": chosen_claims("speed"), "jobs": 1}
PLAN = r"1 of 16 claims, [\d,]+ runs, [\d,]+ training steps: about \d+ s on 1 core\n"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every run short: the machinery is tested here, not the claims."""
    monkeypatch.setattr(Settings, "steps", property(lambda _: 20))
    monkeypatch.setattr(Settings, "short_steps", property(lambda _: 10))
    monkeypatch.setattr(runner, "advised", lambda _, setting: setting)


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("small")
def test_every_claim_is_measured_and_reported(tmp_path: Path) -> None:
    code, out, _ = invoke("study", "--quick", "--claims", "all", "--jobs", "1", "--seeds", "3", "--out", tmp_path / "r")
    assert code == 0
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    page = (tmp_path / "r" / "index.html").read_text()
    assert [c["id"] for c in results["claims"]] == list(all_claims())
    for claim in results["claims"]:
        assert claim["verdict"] in MARKS
        assert f"{MARKS[claim['verdict']][0]} {claim['verdict']}: {claim['id']}. " in out
        assert f'id="{claim["id"]}-title"' in page
    assert "seconds" in json.loads((tmp_path / "r" / "timings.json").read_text())


@pytest.mark.usefixtures("small")
def test_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    code, out, err = invoke("study", *SPEED, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith("Loading PyTorch and scikit-learn\n")
    assert re.search(f"^{PLAN}", out, re.MULTILINE)
    results = json.loads((tmp_path / "results.json").read_text())
    assert f"speed. {results['claims'][0]['summary']}\n" in out
    assert "Report: " in out


@pytest.mark.usefixtures("small")
def test_tables_and_json(tmp_path: Path) -> None:
    code, out, err = invoke("study", *SPEED, "--out", tmp_path, "--json")
    assert code == 0
    assert re.search(f"^{PLAN}", err, re.MULTILINE)
    assert out == (tmp_path / "results.json").read_text("utf-8")
    results = json.loads(out)
    assert results["data"]["name"] == "placements"
    assert results["claims"][0]["rerun"].endswith("--claims speed")


@pytest.mark.usefixtures("small")
def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(TINY, **SMALL, out=tmp_path / name)
    texts = [(tmp_path / name / "results.json").read_text() for name in ("a", "b")]
    assert texts[0] == texts[1]
    run(TINY, **{**SMALL, "settings": Settings(seeds=3, seed=7, quick=True, batch_size=30)}, out=tmp_path / "c")
    claims = json.loads((tmp_path / "c" / "results.json").read_text())["claims"]
    assert claims[0]["numbers"] != json.loads(texts[0])["claims"][0]["numbers"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of runs of each chunk, as they are trained for the study."""
    chunks: list[int] = []
    train = lab.train

    def counted(specs: list[Spec], problem: Problem) -> list[Outcome]:
        if specs[0].steps != lab.TRIAL_STEPS:
            chunks.append(len(specs))
        return train(specs, problem)

    monkeypatch.setattr(lab, "train", counted)
    return chunks


@pytest.mark.usefixtures("small")
def test_resuming_trains_only_what_is_missing(tmp_path: Path, trained: list[int]) -> None:
    run(TINY, **SMALL, out=tmp_path)
    whole = (tmp_path / "results.json").read_text()
    kept = sorted((tmp_path / "runs").glob("*.json"))
    kept[0].unlink()
    trained.clear()
    run(TINY, **SMALL, out=tmp_path, resume=True)
    assert len(trained) == 1
    assert (tmp_path / "results.json").read_text() == whole
    run(TINY, **SMALL, out=tmp_path, resume=True)
    assert len(trained) == 1
    run(TINY, **SMALL, out=tmp_path)
    assert len(trained) == 1 + len(kept)


DAMAGES = (
    "", "[", "[{", "{}", "[]", "null", "3", '"text"', "[[]]", '{"outcomes": []}', '{"checksum": "", "outcomes": []}',
    '{"checksum": null, "outcomes": null}', '{"checksum": [], "outcomes": {}}', "[" * 100_000, "\x00", "NaN",
)  # fmt: skip


def test_runs_that_are_not_as_they_were_written_are_not_believed(tmp_path: Path) -> None:
    problem = Problem({"main": digits()})
    spec = Spec("main", "before", "relu", "minmax", "sgd", 60, 10, "", None, 0.1, 0)
    chunk, outcome = [spec], Outcome([0, 1], [0.1, math.nan], [0.2, 0.3], [{"step": 1, "seen": [math.inf, 2.0]}])
    kept = Kept(tmp_path, problem)
    written = kept.write(chunk, [outcome])
    assert repr(kept.read(chunk)) == repr(written)  # as NaN is not equal to itself
    assert written[0].test == outcome.test
    text = kept.file(chunk).read_text("utf-8")
    altered = json.loads(text)
    altered["outcomes"][0]["test"][-1] = 0.999
    other = kept.file([replace(spec, seed=1)])
    for damaged in (*DAMAGES, json.dumps(altered), text[:-20], text.replace("[", "{")):
        kept.file(chunk).write_text(damaged, "utf-8")
        assert Kept(tmp_path, problem).read(chunk) is None, damaged[:100]
    kept.file(chunk).write_bytes(b"\xff\xfe" + text.encode("utf-16"))
    assert Kept(tmp_path, problem).read(chunk) is None
    other.write_text(text, "utf-8")
    assert Kept(tmp_path, problem).read([replace(spec, seed=1), spec]) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": "json:loads"},
        {"own_normalizes": True},
        {"datasets": {"main": replace(digits(), metric="auc")}},
        {"datasets": {"main": replace(digits(), x=digits().x + 1)}},
        {"datasets": {"main": replace(digits(), y=digits().y[::-1])}},
    ],
)
def test_runs_of_another_problem_are_not_taken_up(tmp_path: Path, change: dict[str, object]) -> None:
    problem = Problem({"main": digits()})
    chunk = [Spec("main", "before", "relu", "minmax", "sgd", 60, 10, "", None, 0.1, 0)]
    Kept(tmp_path, problem).write(chunk, [Outcome([0], [0.1], [0.2])])
    assert Kept(tmp_path, problem).read(chunk) is not None
    assert Kept(tmp_path, replace(problem, **change)).read(chunk) is None


@pytest.mark.usefixtures("small")
def test_earlier_runs_stay_until_the_new_study_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(TINY, **SMALL, out=tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.setattr(runner, "_results", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    other = {**SMALL, "settings": Settings(seeds=3, quick=True, batch_size=20)}
    with pytest.raises(KeyboardInterrupt):
        run(TINY, **other, out=tmp_path)
    assert all(file.read_bytes() == content for file, content in before.items())
    monkeypatch.undo()
    monkeypatch.setattr(Settings, "steps", property(lambda _: 20))
    monkeypatch.setattr(Settings, "short_steps", property(lambda _: 10))
    run(TINY, **other, out=tmp_path, resume=True)
    assert not any(file.exists() for file in before if file.parent.name == "runs")


@pytest.mark.usefixtures("small")
def test_reports_of_the_same_data_are_replaced_and_of_others_only_if_asked(tmp_path: Path) -> None:
    assert invoke("study", *SPEED, "--out", tmp_path)[0] == 0
    assert invoke("study", *SPEED, "--batch-size", "30", "--out", tmp_path)[0] == 0
    first = (tmp_path / "results.json").read_text()
    (other := tmp_path / "other.csv").write_text("a,b,c\n" + ROWS)
    arguments = ["study", other, "--target", "c", *SHORT, "--out", tmp_path]
    code, _, err = invoke(*arguments)
    assert code == 2
    assert "holds the report of other data, placements; name another folder with --out" in err
    assert (tmp_path / "results.json").read_text() == first
    runs = set((tmp_path / "runs").iterdir())
    assert invoke(*arguments, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "results.json").read_text())["data"]["name"] == "other"
    assert not runs & set((tmp_path / "runs").iterdir())


@pytest.mark.usefixtures("small")
def test_data_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    run(TINY, **SMALL, out=tmp_path)
    with pytest.raises(ValueError, match="holds the report of other data of the same name, tiny"):
        run(replace(TINY, x=X + 1), **SMALL, out=tmp_path)


OWN = """
import os, subprocess, sys
import numpy as np
from torch import nn
print("imported")
def data():
    print("called")
    os.write(1, b"written\\n")
    subprocess.run([sys.executable, "-c", "print('started')"])
    x = np.random.default_rng(0).normal(size=(100, 6)).astype("float32")
    return x, (x.mean(1) > 0).astype(int)
def model():
    print("made")
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_module.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("own_module", None)
    return tmp_path


OWN_MODEL = ["--data", "own_module:data", "--model", "own_module:model", *SHORT, "--batch-size", "20"]


@pytest.mark.usefixtures("small", "own")
def test_json_holds_nothing_that_the_users_code_prints(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke("study", *OWN_MODEL, "--json")
    assert code == 0
    assert json.loads(out)["data"]["rows"] == 100
    direct, err = capfd.readouterr()
    assert direct == ""
    assert "written\nstarted\n" in err


@pytest.mark.usefixtures("small")
def test_runs_of_a_model_that_was_changed_are_not_taken_up(own: Path, trained: list[int]) -> None:
    assert invoke("study", *OWN_MODEL)[0] == 0
    kept = set((own / "report" / "runs").iterdir())
    trained.clear()
    assert invoke("study", *OWN_MODEL, "--resume")[0] == 0
    assert trained == []
    (own / "own_module.py").write_text(OWN.replace("nn.ReLU", "nn.Tanh"))
    sys.modules.pop("own_module")
    assert invoke("study", *OWN_MODEL, "--resume")[0] == 0
    assert trained
    assert not kept & set((own / "report" / "runs").iterdir())


ROWS = "".join(f"{i % 7},{i * i % 11},{'ab'[i % 7 > 3]}\n" for i in range(80))
NAMES = "[/red]x,\x1b[31mred\x1b[0m,[bold]y\n"


@pytest.mark.usefixtures("small")
def test_names_do_not_act_on_the_terminal(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(NAMES + ROWS)
    folder = tmp_path / "[/red]x"
    code, out, err = invoke("study", table, "--target", "[bold]y", *SHORT, "--out", folder)
    assert code == 0, err
    assert "\x1b" not in out + err
    assert "[/red]x/index.html" in out.replace("\n", "")
    code, out, _ = invoke("study", table, "--target", "[bold]y", "--check")
    assert code == 0
    assert "\x1b" not in out
    assert "[/red]x" in out


def test_check_shows_the_profile_and_trains_nothing(tmp_path: Path, trained: list[int]) -> None:
    code, out, err = invoke("study", TABLE, "--target", "placed", "--check")
    assert (code, err, trained) == (0, "", [])
    assert "cgpa" in out
    code, out, err = invoke("study", TABLE, "--target", "placed", "--check", "--json")
    assert (code, err) == (0, "")
    assert {column["column"] for column in json.loads(out)["columns"]} == {"cgpa", "iq", "placed"}
    code, out, _ = invoke("study", TABLE, "--target", "salary", "--check", "--json")
    assert code == 2
    assert "salary" in json.loads(out)["problems"][0]
    assert list(tmp_path.iterdir()) == []


def test_list_shows_the_claims() -> None:
    code, out, err = invoke("study", "--list", "--json")
    assert (code, err) == (0, "")
    listed = {claim["id"]: claim for claim in json.loads(out)}
    assert list(listed) == list(all_claims())
    assert all(claim["statement"] and claim["source"] for claim in listed.values())
    assert listed["speed"]["steps"] > 0
    code, out, _ = invoke("study", "--list")
    assert code == 0
    assert all(claim in out for claim in listed)


@pytest.mark.usefixtures("small")
def test_open_asks_the_browser_for_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(command.webbrowser, "open", lambda url: opened.append(url) or print("noise") or True)
    code, out, _ = invoke("study", *SPEED, "--out", tmp_path, "--open")
    assert code == 0
    assert opened == [(tmp_path / "index.html").as_uri()]
    assert "noise" not in out


@pytest.mark.usefixtures("small")
def test_tensorboard_gets_curves_and_effects(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, _, err = invoke("study", *SPEED, "--out", tmp_path / "report", "--tensorboard", tmp_path / "board")
    assert code == 0, err
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    curves = results["explore"]["relu"]["sides"]["none"]
    rate, curve = next((rate, curve) for rate, curve in curves.items() if None not in curve["median"])
    events = EventAccumulator(str(tmp_path / "board" / "without batch normalization"))
    events.Reload()
    scalars = events.Scalars(next(t for t in events.Tags()["scalars"] if f"relu/learning rate {rate}" in t))
    assert [scalar.step for scalar in scalars] == curve["steps"]
    assert [scalar.value for scalar in scalars] == pytest.approx(curve["median"])
    effects = EventAccumulator(str(tmp_path / "board" / "effects"))
    effects.Reload()
    known = [e for e in results["claims"][0]["effects"] if e["value"] is not None]
    assert len([tag for tag in effects.Tags()["scalars"] if tag.startswith("speed/")]) == len(known)


def test_a_file_sets_options_and_the_command_line_has_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Options] = []
    monkeypatch.setattr(command, "answer", lambda options, _: asked.append(options) or command.Answer("{}", ""))
    file = tmp_path / "study.toml"
    file.write_text(
        f'quick = true\n[study]\ntable = "{TABLE}"\ntarget = "placed"\nclaims = ["speed", "score"]\nbatch_size = 30\n'
        f'drop = ["iq", 2]\noptimizer = "adam"\nout = "{tmp_path / "out"}"\nseeds = 7\nno-header = true\n'
    )
    assert invoke("study", "--config", file)[0] == 0
    assert invoke("study", "--seeds", 9, "--config", file, "--claims", "speed", "--drop", "cgpa")[0] == 0
    first, second = asked
    assert (first.table, first.target, first.claims, first.batch_size) == (Path(TABLE), "placed", "speed,score", 30)
    assert (first.drop, first.optimizer, first.out, first.seeds) == (["iq", "2"], "adam", tmp_path / "out", 7)
    assert first.quick
    assert first.no_header
    assert (second.seeds, second.claims, second.drop, second.batch_size) == (9, "speed", ["cgpa"], 30)


def test_options_are_those_of_the_library(tmp_path: Path) -> None:
    assert [m.value for m in options_of.Metric] == list(METRICS)
    assert [a.value for a in options_of.Activation] == list(ACTIVATIONS)
    assert [b.value for b in options_of.Backend] == list(BACKENDS)
    assert [o.value for o in options_of.Optimizer] == list(OPTIMIZERS)
    assert command._settings(Options(seeds=12, seed=0, batch_size=60, optimizer="sgd")) == Settings()
    parameters = set(options_of.study.__annotations__) - {"return", "config", "list_claims", "as_json", "open_report"}
    (tmp_path / "x.toml").write_text("x = 1")
    with pytest.raises(ValueError, match="there is no option 'x'; there are: ") as error:
        from_toml(tmp_path / "x.toml")
    named = str(error.value).split("there are: ")[1].replace("-", "_").split(", ")
    assert set(named) == parameters | {"json", "open"}


def test_help_names_every_option_in_groups() -> None:
    code, out, _ = invoke("study", "--help")
    assert code == 0
    for parameter in set(options_of.study.__annotations__) - {"return", "table", "as_json", "open_report"}:
        assert "--" + parameter.replace("_", "-").replace("list-claims", "list") in out
    assert all(f"─ {panel} ─" in out for panel in ("Data", "Network", "Study", "Report", "Run"))
    assert "<bool>" not in out


def plan(**more: object) -> Plan:
    return Plan(**{**{"claims": {"speed": 7}, "steps": 480_000, "left": 480_000, "runs": 1204, "seconds": 94.3,
                      "jobs": 2, "backend": "processes"}, **more})  # fmt: skip


def test_the_plan_in_a_line() -> None:
    assert plan_line(plan(), 16) == "16 claims, 1,204 runs, 480,000 training steps: about 95 s on 2 cores"
    assert plan_line(plan(left=1, runs=1, jobs=1, seconds=600.0), 1) == (
        "1 of 16 claims, 1 run, 1 training step (of 480,000; the others are finished): about 10 min on 1 core"
    )
    assert plan_line(plan(backend="ray", jobs=16), 2).endswith("about 95 s on 16 workers of ray")


def test_a_live_table_on_a_terminal() -> None:
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=40)
    claims = chosen_claims("speed,score")
    with Screen(console, claims) as screen:
        screen.planned(plan(claims={"speed": 100, "score": 300}, steps=400))
        screen.worked(["speed", "score"], 100)
        screen.measured(claims[0], Finding(skipped="no reason"))
    shown = text.getvalue()
    assert "2 of 16 claims, 1,204 runs" in shown
    assert "not measured" in shown
    assert "33 %" in shown
    assert "25 %" in shown


def test_progress_is_told_where_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchnorm.study import screen as of

    monkeypatch.setattr(of, "QUIET_S", 0.0)
    text = StringIO()
    with Screen(Console(file=text, width=100), chosen_claims("speed")) as screen:
        screen.planned(plan(claims={"speed": 100}, steps=100))
        screen.worked(["speed"], 50)
        screen._over.wait(2.5)
    assert "50 % of the runs" in text.getvalue()


def python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, check=False, env={**os.environ, **environment}
    )


def test_the_package_is_a_command() -> None:
    done = python("-m", "batchnorm", "--version")
    assert done.stdout.startswith(b"batchnorm ")
    assert b"Usage: batchnorm" in python("-m", "batchnorm", "--help").stdout


def test_files_in_the_working_directory_do_not_stand_in_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "typer", "rich", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    done = python("-m", "batchnorm", "study", "--claims", "sped")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: there is no claim 'sped'")


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(
        "größe,日本,y\n" + "".join(f"{i % 7},{i * i % 11},{'ab'[i % 7 > 3]}\n" for i in range(80)), "utf-8"
    )
    done = python("-m", "batchnorm", "study", table, "--target", "y", "--check", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"gr\\xf6\\xdfe" in done.stdout
    done = python("-m", "batchnorm", "study", table, "--target", "y", "--check", "--json", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert [c["column"] for c in json.loads(done.stdout)["columns"]] == ["größe", "日本", "y"]


def test_the_shipped_data_are_those_of_scikit_learn() -> None:
    from sklearn import datasets

    for ours, theirs in ((digits(), datasets.load_digits()), (breast_cancer(), datasets.load_breast_cancer())):
        assert (ours.x == theirs.data.astype("float32")).all()
        assert (ours.y == theirs.target).all()
        assert ours.classes == tuple(map(str, theirs.target_names))


def test_info_and_version() -> None:
    code, out, _ = invoke("info", "--json")
    assert code == 0
    assert [kernel["name"] for kernel in json.loads(out)["kernels"]] == ["native", "cuda", "eager"]
    assert all(kernel["reason"] for kernel in json.loads(out)["kernels"])
    assert invoke("info")[0] == 0
    assert invoke("--version")[1].startswith("batchnorm ")


def test_unknown_versions_are_left_out() -> None:
    assert {"python", "torch"} <= set(runner._versions())
