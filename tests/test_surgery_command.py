"""What the tools have in common, and the two commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from batchnorm.cli import app
from batchnorm.errors import ArgumentError
from batchnorm.surgery import Change, Left, Report, factory
from batchnorm.surgery.flow import record, tensors_in
from batchnorm.surgery.places import chosen, places, put

OWN = """
import torch
from torch import nn
from batchnorm.torch import BatchNorm
def model(): return nn.Sequential(nn.Linear(3, 4), BatchNorm(4), nn.ReLU(), nn.Linear(4, 2))
def loader(): return [torch.arange(24.0).reshape(8, 3), torch.ones(1, 3)]
def example(): return torch.ones(2, 3)
def nothing(): return []
def three(): return 3
def broken(): raise RuntimeError("out of cheese")
def interrupted():
    yield torch.ones(2, 3)
    raise KeyboardInterrupt
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_tools.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def invoke(*arguments: Any) -> tuple[int, str, str]:
    ran = CliRunner().invoke(app, [str(a) for a in arguments])
    return ran.exit_code, ran.stdout, " ".join(ran.stderr.split())


RECALIBRATE = ("recalibrate", "--model", "own_tools:model", "--data", "own_tools:loader")
FOLD = ("fold", "--model", "own_tools:model", "--inputs", "own_tools:example")


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_recalibrate_and_fold_from_file_to_file(own: Path, ending: str) -> None:
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    save_file(start.state_dict(), own / "start.safetensors")
    out = own / f"ready.{ending}"
    code, said, err = invoke(*RECALIBRATE, "--weights", "start.safetensors", "--out", out, "--sequential", "--json")
    assert (code, err) == (0, "")
    told = json.loads(said)
    assert (told["tool"], told["numbers"]) == ("recalibrate", {"samples": 9, "batches": 2})
    ready = factory.read(out)
    x = start[0](torch.cat([torch.arange(24.0).reshape(8, 3), torch.ones(1, 3)]))
    assert torch.allclose(ready["1.running_mean"], x.mean(0))
    code, said, err = invoke(*FOLD, "--weights", out, "--out", own / "folded.safetensors")
    assert (code, err) == (0, "")
    assert "folded into 0" in said
    assert not any("running" in name for name in load_file(own / "folded.safetensors"))


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # by the exporter
def test_fold_writes_programs(own: Path, ending: str) -> None:
    out = own / f"folded.{ending}"
    code, _, err = invoke(*FOLD, "--out", out)
    assert code == 0, err
    if ending == "pt2":
        assert torch.export.load(out).module()(torch.ones(2, 3)).shape == (2, 2)
    else:
        assert b"BatchNorm" not in out.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*RECALIBRATE, "--out", "x.txt"), "`--out` must end in .safetensors, .pt, .pth or .bin, got x.txt"),
        ((*RECALIBRATE, "--out", "there/x.pt"), "must lie in a folder that exists"),
        ((*RECALIBRATE, "--out", "x.pt", "--weights", "no.pt"), "no.pt cannot be read as weights"),
        ((*RECALIBRATE, "--out", "x.pt", "--weights", "own_tools.py"), "weights must be a file in .safetensors"),
        ((*RECALIBRATE, "--out", "x.pt", "--layers", "7"), "'7', which is no layer"),
        ((*RECALIBRATE[:3], "--data", "own_tools:nothing", "--out", "x.pt"), "no batch that reaches a layer"),
        ((*RECALIBRATE[:3], "--data", "own_tools:three", "--out", "x.pt"), "got int"),
        ((*RECALIBRATE[:3], "--data", "own_tools:broken", "--out", "x.pt"), "RuntimeError: out of cheese"),
        (("fold", "--model", "own_tools:three", *FOLD[3:], "--out", "x.pt"), "must return a torch.nn.Module, got int"),
        (("fold", "--model", "own_tools", *FOLD[3:], "--out", "x.pt"), "must be written package.module:factory"),
    ],
)
def test_what_is_refused_is_told_in_a_line(own: Path, arguments: tuple[str, ...], says: str) -> None:
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert not list(own.glob("x.*"))


def test_weights_of_another_model_and_no_weights_at_all(own: Path) -> None:
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, own / "other.pt")
    assert "does not fit `--model own_tools:model`" in invoke(*FOLD, "--weights", "other.pt", "--out", "x.pt")[2]
    torch.save([1, 2], own / "list.pt")
    with pytest.raises(ArgumentError, match="must hold a state_dict, tensors by name, got list"):
        factory.read(own / "list.pt")


def test_ctrl_c_writes_nothing(own: Path) -> None:
    code, _, err = invoke(*RECALIBRATE[:3], "--data", "own_tools:interrupted", "--out", "x.pt")
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
