"""What the tools have in common, and the two commands."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from rich.filesize import decimal
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from batchnorm.cli import app
from batchnorm.outputs import SAID
from batchnorm.surgery import Change, Left, Report, factory, fold
from batchnorm.surgery.flow import record, tensors_in
from batchnorm.surgery.places import chosen, places, put
from tolerance import assert_close

OWN = """
import torch
from torch import nn
from batchnorm.torch import BatchNorm

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), BatchNorm(4), nn.ReLU(), nn.Linear(4, 2))

def loader(): return [torch.arange(24.0).reshape(8, 3), torch.ones(1, 3)]
def example(): return torch.ones(2, 3)
def by_name(): return {"input": torch.ones(2, 3)}
def one(): return torch.ones(1, 3)
def nothing(): return []
def none(): pass
def three(): return 3
def broken(): raise RuntimeError("out of cheese")
def stopped(): raise KeyboardInterrupt

def interrupted():
    yield torch.ones(2, 3)
    raise KeyboardInterrupt

def failing():
    yield torch.ones(2, 3)
    raise OSError("the disk\\nis gone " + "." * 400)

net, batches, inputs = model(), loader(), example()

def partly():
    made = nn.Sequential(BatchNorm(3), nn.Linear(3, 3), BatchNorm(3)).train()
    made[2].eval()
    return made

class Talks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        print("a batch comes")
        return self.norm(self.a(x))

class Fixed(Talks):
    def forward(self, x):
        return super().forward(x).reshape(2, 3)

class AnyName(Talks):
    def forward(self, **named):
        return super().forward(named["input"])

class Picky(Talks):
    def forward(self, x):
        raise TypeError("not these")

class Named(Talks):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__()

    def forward(self, input, add_1, scale=2.0):
        x = super().forward(input)
        return {"linear": x + add_1.sum(), "add": (x * scale, add_1 * 1)}

class Passing(Named):
    def forward(self, x):
        return x, Talks.forward(self, x)

def in_float64(): return model().double()
def long(): return example().double()
def two_batches(): return torch.ones(2, 3), torch.ones(4, 3), 3.0
def second(model, batch): return model(batch["second"])
def pairs(): return [{"first": torch.ones(4, 3), "second": torch.full((4, 3), 2.0)}]
"""


def line(text: str) -> str:
    """Return file and line of the first line of the user's module that begins so."""
    return f"(own_tools.py:{[one.strip().startswith(text) for one in OWN.splitlines()].index(True) + 1})"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_tools.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_tools", raising=False)  # whose things a command may have changed
    return tmp_path


def invoke(*arguments: Any) -> tuple[int, str, str]:
    ran = CliRunner().invoke(app, [str(a) for a in arguments])
    return ran.exit_code, ran.stdout, " ".join(ran.stderr.split())


RECALIBRATE = ("recalibrate", "--model", "own_tools:model", "--data", "own_tools:loader")
FOLD = ("fold", "--model", "own_tools:model", "--inputs", "own_tools:example")


def recalibrating(model: str, data: str) -> tuple[str, ...]:
    return "recalibrate", "--model", f"own_tools:{model}", "--data", f"own_tools:{data}"


def folding(model: str, inputs: str) -> tuple[str, ...]:
    return "fold", "--model", f"own_tools:{model}", "--inputs", f"own_tools:{inputs}"


@pytest.mark.parametrize("ending", ["safetensors", "pt", "ckpt"])
def test_recalibrate_and_fold_from_file_to_file(own: Path, ending: str) -> None:
    torch.manual_seed(1)
    start = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    save_file(start.state_dict(), own / "start.safetensors")
    out = own / f"ready.{ending}"
    code, said, err = invoke(*RECALIBRATE, "--weights", "start.safetensors", "--out", out, "--sequential", "--json")
    assert (code, err) == (0, f"wrote {out} ({decimal(out.stat().st_size)})")
    told = json.loads(said)
    assert (told["tool"], told["numbers"]) == ("recalibrate", {"samples": 9, "batches": 2})
    x = start[0](torch.cat([torch.arange(24.0).reshape(8, 3), torch.ones(1, 3)])).detach()
    assert_close(factory.read(out)["1.running_mean"], x.mean(0), "float32", x.abs().max())
    code, said, err = invoke(*FOLD, "--weights", out, "--out", own / "folded.safetensors")
    assert (code, err) == (
        0,
        f"wrote {own}/folded.safetensors ({decimal((own / 'folded.safetensors').stat().st_size)})",
    )
    assert "folded into 0" in said
    assert not any("running" in name for name in load_file(own / "folded.safetensors"))


def test_averaged_weights_are_recalibrated_as_the_readme_says(own: Path) -> None:
    average = AveragedModel(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    torch.save(average.state_dict(), "swa.pt")
    code, _, err = invoke(*RECALIBRATE, "--weights", "swa.pt", "--out", "ready.safetensors")
    assert code == 0, err
    ready = load_file("ready.safetensors")
    assert torch.equal(ready["0.weight"], average.module[0].weight)
    assert not torch.equal(ready["1.running_mean"], average.module[1].running_mean)


def test_folded_weights_come_back_into_the_folded_model(own: Path) -> None:
    assert invoke(*recalibrating("model", "loader"), "--out", "ready.pt")[0] == 0
    assert invoke(*FOLD, "--weights", "ready.pt", "--out", "folded.safetensors")[0] == 0
    own_tools = importlib.import_module("own_tools")
    back = fold(own_tools.model().eval(), own_tools.example()).model
    back.load_state_dict(load_file("folded.safetensors"))
    model, x = own_tools.model().eval(), own_tools.loader()[0]
    model.load_state_dict(factory.read(Path("ready.pt")))
    expected = model(x).detach()
    assert_close(back(x).detach(), expected, "float32", expected.abs().max())
    assert "fold(model().eval(), example()).model" in " ".join(invoke("fold", "--help")[1].replace("│", "").split())


@pytest.mark.parametrize("inputs", ["example", "by_name"])
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_programs_take_any_batch(own: Path, ending: str, inputs: str) -> None:
    out = own / f"folded.{ending}"
    code, _, err = invoke(*folding("model", inputs), "--out", out)
    assert (code, err) == (0, f"wrote {out} ({decimal(out.stat().st_size)})")
    model = importlib.import_module("own_tools").model().eval()
    for x in (torch.arange(15.0).reshape(5, 3), torch.ones(1, 3)):
        expected = model(x).detach()
        if ending == "pt2":
            program: Any = torch.export.load(out).module()
            found = (program(x) if inputs == "example" else program(input=x)).detach()
        else:
            assert b"BatchNorm" not in out.read_bytes()
            (found,) = onnxruntime.InferenceSession(out).run(None, {"input": x.numpy()})
        assert_close(found, expected, "float32", expected.abs().max())


@pytest.mark.parametrize(
    ("model", "inputs", "takes", "returns"),
    [
        ("model", "example", [("input", "batch")], ["output"]),
        ("Named", "two_batches", [("input", "batch"), ("add_1", "batch_add_1")], ["linear", "add_0", "add_1_out"]),
        ("Passing", "example", [("x", "batch")], ["output_0", "output_1"]),
    ],
)
def test_inputs_outputs_and_batches_of_onnx_have_the_names_of_the_model(
    own: Path, model: str, inputs: str, takes: list[tuple[str, str]], returns: list[str]
) -> None:
    assert invoke(*folding(model, inputs), "--out", "x.onnx")[0] == 0
    session = onnxruntime.InferenceSession("x.onnx")
    assert [(one.name, one.shape[0]) for one in session.get_inputs()] == takes
    assert [one.name for one in session.get_outputs()] == returns
    module = importlib.import_module("own_tools")
    arrays = [torch.arange(15.0).reshape(5, 3), torch.arange(21.0).reshape(7, 3)][: len(takes)]
    given = {name: x.numpy() for (name, _), x in zip(takes, arrays, strict=True)}
    scale = (3.0,) if model == "Named" else ()
    with torch.no_grad():
        expected = tree_leaves(getattr(module, model)().eval()(*arrays, *scale))
    for y, wanted in zip(session.run(None, given), expected, strict=True):
        assert_close(torch.as_tensor(y), wanted, "float32", wanted.abs().max())


def test_an_onnx_that_no_runtime_takes_is_refused_or_told_of(own: Path) -> None:
    with Path("own_tools.py").open("a") as file:
        file.write("\ndef convolution(): return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).bfloat16()\n")
        file.write("def image(): return torch.ones(2, 1, 3, 3).bfloat16()\n")
    code, _, err = invoke(*folding("convolution", "image"), "--out", "x.onnx")
    assert (code, "no valid ONNX of the model (a model in bfloat16? model.float() first)" in err) == (2, True), err
    assert not Path("x.onnx").exists()
    code, _, err = invoke(*folding("in_float64", "long"), "--out", "x.onnx")
    assert (code, "note: the program is in float64" in err) == (0, True), err


@pytest.mark.parametrize(
    ("model", "inputs", "note"),
    [
        ("model", "one", "a batch of 1 only: give example inputs of 2 or more"),
        ("Fixed", "example", "a batch of 2 only"),
        ("AnyName", "by_name", "a batch of 2 only"),
    ],
)
def test_programs_that_take_one_batch_size_say_so(own: Path, model: str, inputs: str, note: str) -> None:
    code, _, err = invoke(*folding(model, inputs), "--out", "x.pt2")
    assert (code, f"note: the program takes {note}" in err) == (0, True), err


def test_large_programs_keep_their_weights_beside_them(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "ONE_FILE", 0)
    code, _, err = invoke(*FOLD, "--out", "x.onnx")
    assert (code, "wrote x.onnx (" in err, "wrote x.onnx.data (" in err) == (0, True, True), err


@pytest.mark.parametrize("library", ["onnx", "onnxscript"])
def test_a_missing_exporter_is_told_before_the_work(own: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    code, _, err = invoke(*folding("broken", "example"), "--out", "x.onnx")
    needs = f"`batchnorm fold --out x.onnx` needs {library}, which is not installed: pip install 'batchnorm[onnx]'"
    assert (code, needs in err) == (2, True), err
    assert invoke(*FOLD, "--out", "x.pt2")[0] == 0


WRONG = [
    ((*RECALIBRATE, "--out", "x.txt"), "`--out` must end in .safetensors, .pt, .pth, .bin or .ckpt, got x.txt"),
    ((*RECALIBRATE, "--out", "there/x.pt"), "must lie in a folder that exists"),
    ((*RECALIBRATE, "--out", "x.pt", "--weights", "no.pt"), "no.pt cannot be read as weights: FileNotFoundError"),
    ((*RECALIBRATE, "--out", "x.pt", "--weights", "own_tools.py"), "weights must be a file in .safetensors"),
    ((*RECALIBRATE, "--out", "x.pt", "--layers", "7"), "'7', which is no layer"),
    ((*RECALIBRATE, "--out", "x.pt", "--device", "gpu"), "`--device gpu` cannot be used: RuntimeError"),
    ((*RECALIBRATE, "--out", "x.pt", "--call", "own_tools:net.no"), "cannot be imported: AttributeError"),
    ((*RECALIBRATE, "--out", "x.pt", "--call", "own_tools:inputs"), "is not callable: Tensor"),
    ((*recalibrating("model", "nothing"), "--out", "x.pt"), "no batch that reaches a layer"),
    ((*recalibrating("model", "three"), "--out", "x.pt"), "got int"),
    ((*recalibrating("model", "broken"), "--out", "x.pt"), f"RuntimeError: out of cheese {line('def broken')}"),
    ((*recalibrating("model", "failing"), "--out", "x.pt"), "failed: OSError: the disk is gone ..."),
    ((*recalibrating("model", "failing"), "--out", "x.pt"), f"... {line('raise OSError')}"),
    ((*recalibrating("Picky", "loader"), "--out", "x.pt"), f"TypeError: not these {line('raise TypeError')}"),
    ((*folding("three", "example"), "--out", "x.pt"), "must return a torch.nn.Module, got int"),
    ((*folding("batches", "example"), "--out", "x.pt"), "must return a torch.nn.Module, got list"),
    ((*folding("model", "none"), "--out", "x.pt"), "`--inputs own_tools:none` failed: TypeError"),
    ((*folding("model", "three"), "--out", "x.onnx"), "`--inputs own_tools:three` failed: TypeError"),
    ((*folding("Picky", "example"), "--out", "x.pt"), f"TypeError: not these {line('raise TypeError')}"),
    (("fold", "--model", "own_tools", *FOLD[3:], "--out", "x.pt"), "must be written package.module:factory"),
    (("fold", "--model", "own_tools.py:net", *FOLD[3:], "--out", "x.pt"), "write own_tools:net, got 'own_tools.py:"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_what_is_refused_is_told_in_a_line(own: Path, arguments: tuple[str, ...], says: str) -> None:
    ran = CliRunner().invoke(app, list(arguments))
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert len(ran.stderr) <= 2 * SAID
    assert says in ran.stderr
    assert not list(own.glob("x.*"))


def test_things_that_are_no_functions_are_taken_as_they_are(own: Path) -> None:
    code, said, err = invoke(*recalibrating("net", "batches"), "--out", "x.pt", "--json")
    assert (code, json.loads(said)["numbers"]) == (0, {"samples": 9, "batches": 2}), err
    own_tools = importlib.import_module("own_tools")
    assert torch.equal(own_tools.net[1].running_mean, factory.read(Path("x.pt"))["1.running_mean"])
    code, said, err = invoke(*folding("net", "inputs"), "--out", "y.pt")
    assert (code, "folded into 0" in said) == (0, True), err


def test_who_needs_a_new_model_in_each_call_refuses_one(own: Path) -> None:
    code, _, err = invoke("study", "--model", "own_tools:net", "--quick")
    assert (code, "must be a function that returns a new one in each call, got a Sequential" in err) == (2, True), err


def test_frozen_layers_of_a_training_model_stay(own: Path) -> None:
    code, said, err = invoke(*recalibrating("partly", "loader"), "--out", "x.pt", "--json")
    assert code == 0, err
    told = json.loads(said)
    assert ([c["where"] for c in told["changes"]], [one["where"] for one in told["left"]]) == (["0"], ["2"])
    ready = factory.read(Path("x.pt"))
    assert (ready["0.running_mean"] != 0).all()
    assert (ready["2.running_mean"] == 0).all()


def test_options_reach_the_tool(own: Path) -> None:
    told = ("--call", "own_tools:second", "--device", "cpu", "--out", "x.pt")
    code, _, err = invoke(*recalibrating("partly", "pairs"), *told)
    assert code == 0, err
    assert factory.read(Path("x.pt"))["0.running_mean"].tolist() == [2.0, 2.0, 2.0]
    (own / "plain.py").write_text("from torch import nn\nnet = nn.Linear(3, 2)\n")
    empty = ("recalibrate", "--model", "plain:net", *RECALIBRATE[3:], "--out", "y.pt")
    assert "allow_empty" in invoke(*empty)[2]
    assert invoke(*empty, "--allow-empty")[0] == 0
    assert (own / "y.pt").exists()
    assert invoke("fold", "--model", "plain:net", *FOLD[3:], "--out", "z.pt", "--allow-empty")[0] == 0
    assert factory.made_model("plain:net", None, "meta").weight.is_meta


def test_what_a_model_prints_is_not_the_report(own: Path) -> None:
    code, said, err = invoke(*recalibrating("Talks", "loader"), "--out", "x.pt", "--json")
    assert (code, json.loads(said)["tool"], "a batch comes" in err) == (0, "recalibrate", True)


@pytest.mark.parametrize(
    "arguments",
    [recalibrating("model", "interrupted"), recalibrating("stopped", "loader"), folding("model", "stopped")],
)
def test_ctrl_c_writes_nothing(own: Path, arguments: tuple[str, ...]) -> None:
    code, _, err = invoke(*arguments, "--out", "x.pt")
    assert (code, "nothing is written" in err) == (130, True)
    assert not (own / "x.pt").exists()


def test_a_walk_meets_a_shared_module_once_with_all_names() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ModuleDict({"again": shared}), nn.ReLU())
    (place,) = places(model, lambda module: isinstance(module, nn.Linear))
    assert place.names == ("0", "1.again")
    new = nn.Linear(2, 2)
    assert put(model, place, new) is model
    assert model[0] is new
    assert model[1]["again"] is new
    found = places(model)
    assert [p.name for p in chosen(found, ["1.*", model[2]])] == ["0", "2"]
    assert chosen(found, None) == found


def test_a_report_prints_and_serialises() -> None:
    change = Change("a.b", "turned", "left", "right", {"off_by": 0.00123, "values": 1234567.0, "none": float("nan")})
    report = Report("turn", nn.ReLU(), [change], [Left("c", "it is [bold] already")], {"samples": 3}, ["a note"])
    shown = str(report)
    for said in ("turn", "a.b", "0.00123", "1,234,567", "left c: it is [bold] already", "samples 3", "a note"):
        assert said in shown
    told = json.loads(report.to_json())
    assert told["changes"][0]["numbers"] == {"off_by": 0.00123, "values": 1234567.0, "none": None}
    assert str(Report("turn", nn.ReLU(), [])) == "turn: nothing to change"


def test_tensors_are_found_in_what_holds_itself() -> None:
    class Cache:
        def __init__(self) -> None:
            self.own, self.key = self, torch.ones(2)

    assert len(tensors_in([Cache(), nn.Linear(2, 2), None])) == 1


def test_the_flow_follows_functions_modules_and_changes_in_place() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            y = self.a(x)
            z = y
            y.relu_()
            z[0] = 0
            return self.b(z) + x, y.shape[0]

    flow = record(Net(), torch.ones(3, 2))
    assert [call.name for call in flow.calls] == ["a", "relu_", "__setitem__", "b", "add"]
    for before, after in zip(flow.calls, flow.calls[1:], strict=False):
        assert set(before.outputs) & set(after.inputs)
    assert flow.results == {flow.calls[-1].outputs[0]}
    assert flow.shapes[flow.calls[0].outputs[0]] == (3, 2)


def test_what_an_exporter_makes_of_an_interruption_is_one(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 1217 vs 1170")

    monkeypatch.setattr(torch, "save", save)
    Path("old.pt").write_bytes(b"old")
    code, _, err = invoke(*RECALIBRATE, "--out", "old.pt")
    assert (code, err) == (130, "Interrupted: nothing is written, old.pt is as it was before.")
    assert Path("old.pt").read_bytes() == b"old"


def test_the_first_cause_is_told_and_no_false_way_out(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: object, **__: object) -> None:
        try:
            raise ValueError("no operator for that")
        except ValueError as error:
            raise RuntimeError("much else " * 100) from error

    monkeypatch.setattr(torch.onnx, "export", export)
    code, _, err = invoke(*FOLD, "--out", "x.onnx")
    assert code == 2
    assert err.startswith("error: x.onnx cannot be written: ValueError: no operator for that (")
    assert "name another file" not in err


@pytest.mark.parametrize("command", [RECALIBRATE, FOLD])
def test_weights_are_written_though_nobody_reads_the_report(
    own: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("batchnorm.cli.running.Console.print", full)
    code, _, _ = invoke(*command, "--out", "x.safetensors")
    assert code == 2
    assert load_file("x.safetensors")


def test_causes_that_cause_one_another_end(own: Path) -> None:
    with Path("own_tools.py").open("a") as file:
        file.write("def circle(*_):\n try: raise ValueError('x')\n except ValueError as e: raise e from e\n")
    code, _, err = invoke(*RECALIBRATE, "--call", "own_tools:circle", "--out", "x.pt")
    assert (code, "failed: ValueError: x" in err) == (2, True), err
