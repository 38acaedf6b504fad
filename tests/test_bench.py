"""`batchnorm bench`: its arithmetic on made-up times, what it writes, what it refuses, and that it finds faults."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from batchnorm.bench import bandwidth, measure, truth
from batchnorm.bench.arrays import Arrays, arrays, rounded
from batchnorm.bench.cases import DEFAULT_OPS, OPS, SHAPES, Case, cases, in_layouts, parsed_shapes
from batchnorm.bench.contenders import CONTENDERS, parsed_contenders
from batchnorm.bench.goals import GOALS, judge
from batchnorm.bench.results import SCHEMA, SIGNIFICANT, Results, Row
from batchnorm.bench.screen import summary
from batchnorm.bench.worker import Worker
from batchnorm.cli import app

FAST = ("--threads", "1", "--rounds", "2", "--contenders", "torch in place")
LARGE = Case((32, 64, 112, 112), "NCHW", "float32", "train")
MACHINE: dict[str, Any] = {"cpu": "a processor", "cores": 2, "system": "a system", "versions": {"torch": "2"}}


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *(str(a) for a in arguments)])
    return result.exit_code, result.stdout, result.stderr


def row(case: Case = LARGE, ratio: float | None = 2.0, **facts: Any) -> Row:
    made = Row("kept", case, "batchnorm", ratio=ratio, median_s=1e-3, min_s=9e-4, share=0.6, bandwidth=1e10)
    return replace(made, **facts)


def results(*rows: Row) -> Results:
    told = {"threads": 2, "rounds": 15, "modes": ["kept"], "contenders": ["batchnorm", "torch"]}
    return Results(MACHINE, told, ["batchnorm", "bench"], rows=list(rows), finished=True)


@pytest.mark.parametrize(
    ("op", "dtype", "each"),
    [
        ("inference", "float32", 8.0),
        ("inference+relu", "bfloat16", 4.0),
        ("forward", "float32", 8.0),
        ("backward", "float32", 12.0),
        ("train", "float16", 10.0),
        ("train+add+relu", "float32", 12.125 + 16.125),  # 3b+⅛ forward, 4b+⅛ backward
    ],
)
def test_least_bytes_are_those_of_the_table(op: str, dtype: str, each: float) -> None:
    assert Case((10, 4), "NC", dtype, op).least_bytes == 40 * each


def test_a_pass_at_the_speed_of_the_copy_has_all_of_the_roofline() -> None:
    copied_in = 0.02
    rate = bandwidth.rate(LARGE.array_bytes, copied_in)
    inference = replace(LARGE, op="inference")
    assert bandwidth.share(inference.least_bytes, copied_in, rate) == pytest.approx(1.0)
    assert bandwidth.share(LARGE.least_bytes, 5 * copied_in, rate) == pytest.approx(0.5)


def test_ratio_and_share_are_of_least_times_and_of_the_faster_copy() -> None:
    taken = {"batchnorm": [0.2, 0.1, 0.9], "torch": [0.5, 0.6, 0.4], "copy a": [0.1] * 3, "copy b": [0.07, 0.05, 9]}
    found = measure._row(row(ratio=None, share=None), taken, 7)
    assert found.ratio == pytest.approx(4.0)
    assert (found.min_s, found.median_s, found.samples, found.calls) == (0.1, 0.2, 3, 7)
    assert found.bandwidth == pytest.approx(2 * LARGE.array_bytes / 0.05, rel=10.0**-SIGNIFICANT)
    assert found.share == pytest.approx(5 * 0.05 / (2 * 0.1), rel=10.0**-SIGNIFICANT)


def test_what_is_shown_is_what_is_written() -> None:
    taken = {"batchnorm": [0.1234567891], "torch": [0.3333333333]}
    found = measure._row(row(ratio=None, share=None), taken, 7)
    assert Results.from_json(results(found).to_json()).rows == [found]


def test_goals_take_the_geometric_mean_and_the_worst() -> None:
    nchw = [row(ratio=2.0), row(replace(LARGE, shape=(32, 64, 56, 56)), ratio=8.0)]
    others = [row(replace(LARGE, layout="NHWC"), ratio=0.1), row(contender="torch", ratio=0.1)]
    judged = {one.id: one for one in judge([*nchw, *others])}
    assert judged["train-first"].mean == pytest.approx(4.0)
    assert judged["train-first"].worst == 2.0
    assert judged["train-first"].where == LARGE.name
    assert judged["train-first"].met is True
    assert judged["train-last"].met is False
    assert judged["train-bfloat16"].met is None
    assert judged["roofline"].mean == pytest.approx(0.6)


@pytest.mark.parametrize("worst", [1.49, None])
def test_one_bad_or_failed_shape_misses_a_goal(worst: float | None) -> None:
    bad = row(ratio=worst, failure="wrong" if worst is None else None, share=None)
    met = {one.id: one.met for one in judge([*[row(ratio=50.0)] * 3, bad])}
    assert met["train-first"] is False


def test_each_goal_is_about_a_default_case_and_memory_modes_are_apart() -> None:
    usual = cases(in_layouts(SHAPES), ("float32", "bfloat16"), DEFAULT_OPS)
    assert all(any(goal.about(row(case)) for case in usual) for goal in GOALS)
    apart = judge([row(), row(memory="default", ratio=4.0)])
    means = {one.memory: one.mean for one in apart if one.id == "train-first"}
    assert means == {"kept": pytest.approx(2.0), "default": pytest.approx(4.0)}


def test_json_comes_back_the_same() -> None:
    told = results(row(), row(ratio=None, failure="wrong by 1", share=None))
    found = json.loads(told.to_json())
    assert found["schema"] == SCHEMA
    assert set(found) == {
        "schema", "command", "finished", "machine", "settings", "ratio", "notes", "goals", "rows",
    }  # fmt: skip
    assert {"shape", "layout", "dtype", "op", "contender", "median_s", "ratio", "share"} <= set(found["rows"][0])
    again = Results.from_json(told.to_json())
    assert again.rows == told.rows
    assert again.to_json() == told.to_json()


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"schema": SCHEMA + 1}), json.dumps({"schema": SCHEMA})])
def test_what_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text(text)
    code, _, err = invoke("--from", tmp_path / "it.json")
    assert (code, err[:7]) == (2, "error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--shapes", "8"), "`--shapes` must be sizes like 64x3"),
        (("--shapes", "1x3"), "more than one value a feature, got '1x3'"),
        (("--shapes", "8x3:NHWC"), "the layout must be NC, got 'NHWC'"),
        (("--ops", "train,fly"), "`--ops` must be of inference"),
        (("--dtypes", "int8"), "`--dtypes` must be of float32, bfloat16, float16, got 'int8'"),
        (("--contenders", "caffe"), "`--contenders` must be of batchnorm, torch"),
        (("--threads", "1000"), "`--threads` must be at most the"),
        (("--out", "nowhere/it"), "`--out` must lie in a folder that exists"),
        (("--chart", "it.gif"), "`--chart` must end in .png or .svg, got it.gif"),
        (("--ops", "forward", "--chart", "it.png"), "the chart shows train in float32"),
        (("--from", "nowhere.json"), "nowhere.json cannot be read"),
        (("--from", "it.json", "--shapes", "3x4", "--quick"), "--shapes, --quick says what to measure"),
        (("--out", "/proc/it"), "`--out` must be a file that can be written, got /proc/it.txt"),
    ],
)
def test_what_is_refused_is_told_in_a_line(arguments: tuple[str, ...], said: str) -> None:
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())


def test_ours_and_the_baseline_are_always_there() -> None:
    assert parsed_contenders("torch in place", ()) == ["batchnorm", "torch", "torch in place"]
    assert parsed_shapes("4x3x2") == [((4, 3, 2), "NLC"), ((4, 3, 2), "NCL")]


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker("by_torch", 1)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("shape", "layout"), in_layouts([(64, 3), (6, 5, 7), (4, 6, 5, 3), (3, 4, 2, 5, 3)]), ids=lambda v: str(v)
)
def test_contenders_compute_what_they_are_timed_for(
    shape: tuple[int, ...], layout: str, dtype: str, op: str, worker: Worker
) -> None:
    names = ["batchnorm", "torch", "torch in place"]
    told = worker.prepare(Case(shape, layout, dtype, op).as_dict(), names, copies=True)
    assert {name: told[name].get("failure") for name in names} == dict.fromkeys(names)
    assert set(bandwidth.COPIES) <= set(worker.steps)
    assert all(worker.sample(name, 2) > 0 for name in worker.steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", bandwidth.COPIES)
def test_copies_of_the_roofline_copy(name: str, dtype: torch.dtype) -> None:
    source = torch.randn(3_000_001).to(dtype)  # of float32 large enough to go past the cache
    target = torch.empty_like(source)
    bandwidth.COPIES[name](source, target, 2)()
    assert torch.equal(target, source)


@pytest.mark.parametrize("fault", ["y", "dx", "dgamma", "dbeta", "dresidual"])
def test_a_wrong_output_is_found(fault: str) -> None:
    case = Case((32, 5), "NC", "float32", "train+add+relu")
    right, room = truth.expected(case, arrays(case))
    assert truth.error(right, right, room) <= 0
    wrong = {**right, fault: right[fault] * 1.01 + 0.001}
    assert truth.error(wrong, right, room) > truth.ALLOWED["float32"]
    assert truth.error({**right, fault: right[fault] * np.nan}, right, room) == float("inf")


def test_who_computes_something_else_is_not_timed(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(case: Case, given: Arrays) -> tuple[Any, Any]:
        right, room = truth_of(case, given)
        return {**right, "y": right["y"] + 0.01}, room

    truth_of = truth.expected
    monkeypatch.setattr(truth, "expected", other)
    told = worker.prepare(Case((64, 3), "NC", "float32", "inference").as_dict(), ["batchnorm"], copies=False)
    assert told["batchnorm"]["failure"].startswith("wrong by ")
    assert worker.steps == {}


def test_arrays_are_exact_in_their_dtype_and_without_zeros() -> None:
    given = arrays(Case((64, 32), "NC", "bfloat16", "train"))
    for values in (given.x, given.dy, given.residual):
        np.testing.assert_array_equal(rounded(values, "bfloat16"), values)
        assert np.abs(values).min() > 1e-30


def test_the_goals_shown_are_those_of_the_committed_run() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "update.py"
    spec = importlib.util.spec_from_file_location("update_benchmarks", path)
    assert spec is not None
    assert spec.loader is not None
    update = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update)
    shown = update.BETWEEN.search(update.README.read_text(encoding="utf-8"))
    assert shown is not None
    assert shown.group() == update.goals(update.results(), update.resnet50())
    rows = [row(), row(memory="default"), row(replace(LARGE, op="inference"), ratio=1.0)]
    found = [("batchnorm, swapped", 1.2), ("no layer at all", 1.3)]
    steps = {"goal": 1.15, "rows": [{"layout": "NHWC", "network": name, "ratio": ratio} for name, ratio in found]}
    table = update.goals(results(*rows), steps)
    assert "| 2.00× of 1 | 2.00× (32×64×112×112 NCHW float32 train) | **missed** | 2.00×, 2.00× |" in table
    assert "swapped | ≥ 1.15× | 1.20× (without any layer: 1.30×) | – | met |" in table


def test_a_quick_run_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, chart = tmp_path / "run", tmp_path / "run.png"
    arguments = ("--shapes", "64x3", "--dtypes", "float32", "--ops", "inference,train+add+relu", "--memory", "both")
    code, said, _ = invoke(*arguments, "--json", "--out", out, "--chart", chart, *FAST)
    assert code == 0
    found = json.loads(said)
    assert found["finished"] is True
    assert [(r["memory"], r["op"], r["contender"]) for r in found["rows"]] == [
        (memory, op, name)
        for memory in ("kept", "default")
        for op, names in (("inference", 2), ("train+add+relu", 3))
        for name in list(CONTENDERS)[:names]
    ]
    assert all(r["median_s"] >= r["min_s"] > 0 and r["error"] <= r["allowed"] for r in found["rows"])
    assert [r["ratio"] for r in found["rows"] if r["contender"] == "torch"] == [1.0] * 4
    assert chart.stat().st_size > 10_000
    assert json.loads(out.with_suffix(".json").read_text()) == found
    table = out.with_suffix(".txt").read_text()
    for told in ("64×3", "train+add+relu", "torch in place", "Memory kept", "Memory default", "Goals", "1 threads"):
        assert told in table
    monkeypatch.setenv("COLUMNS", "80")
    code, narrow, _ = invoke("--from", out.with_suffix(".json"))
    assert code == 0
    assert max(map(len, narrow.splitlines())) <= 80
    for told in ("64×3 NC float32 inference", "64×3 NC float32 train+add+relu", "Memory default", "batchnorm alone"):
        assert told in narrow
    monkeypatch.setenv("COLUMNS", "160")
    code, wide, _ = invoke("--from", out.with_suffix(".json"))
    rows = [line.split() for line in table.splitlines() if line.startswith("│") and "torch in place" in line]
    assert all(row in [line.split() for line in wide.splitlines()] for row in rows)
    assert "missed" not in narrow + wide  # goals are this project's own: they are in the files


def test_on_a_busy_machine_there_is_no_verdict() -> None:
    quiet = results(row(ratio=2.0))
    busy = replace(quiet, notes=["the machine was busy before the run: a load of 12.0"])
    assert any(": 2.00× on average" in line for line in summary(quiet))
    told = replace(quiet, notes=["freed memory cannot be kept here"])
    assert summary(told) == summary(quiet)
    assert summary(busy) == ["no summary: what is measured on a busy machine is no verdict; ask again on an idle one"]


def test_ours_wrong_is_status_one(tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text(results(row(ratio=None, failure="wrong by 1e-1")).to_json())
    code, said, _ = invoke("--from", tmp_path / "it.json")
    assert code == 1
    assert "wrong by 1e-1" in said


def test_a_dead_process_fails_its_contenders_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = measure.Settings(("batchnorm", "torch"), threads=1, rounds=2)
    with measure.Run("kept", chosen, results()) as run:
        run._process("by_torch")._process.kill()
        first, second = (run.rows(Case((64, 3), "NC", "float32", "inference")) for _ in range(2))
    assert all("ended with status -9" in str(one.failure) for one in first)
    assert all(one.failure is None for one in second)


def test_memory_is_kept_by_glibc() -> None:
    code = (
        "from batchnorm.bench.memory import keep; import platform; print(keep() == (platform.libc_ver()[0] == 'glibc'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True"


def interrupted(out: Path, after: str) -> tuple[str, str]:
    """Send Ctrl-C to a bench once its first line on stderr holds a text; return what it says."""
    code = "from batchnorm.cli import app; import sys; print('starts', file=sys.stderr, flush=True); app()"
    shapes = ["--shapes", "64x3,256x64,4x512x32x32", "--threads", "1", "--rounds", "20", "--contenders", "torch"]
    running = subprocess.Popen(
        [sys.executable, "-c", code, "bench", *shapes, "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stderr is not None
    while after not in (line := running.stderr.readline()):
        assert line
    running.send_signal(signal.SIGINT)
    told, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    return told, said


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_prints_what_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "part"
    told, _ = interrupted(out, "64×3 NC float32 inference: ")
    assert "INTERRUPTED" in told
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["finished"] is False
    assert found["rows"][0]["op"] == "inference"
    assert len(found["rows"]) < 2 * len(DEFAULT_OPS)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_takes_away_no_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "run.txt", tmp_path / "run.json"]
    for file in files:
        file.write_text("whole")
    _, said = interrupted(tmp_path / "run", "64×3 NC")
    assert "as it was before" in said

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("batchnorm.bench.measure.measure", stopped)
    code, told, said = invoke("--shapes", "64x3", "--out", tmp_path / "run")
    assert (code, told) == (130, ""), said
    assert "Interrupted before anything was timed." in said
    assert [file.read_text() for file in files] == ["whole", "whole"]
