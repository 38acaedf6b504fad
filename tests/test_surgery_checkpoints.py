"""Weights in files as people have them: of wrappers, inside of checkpoints, and what is no file of weights."""

import argparse
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from batchnorm.errors import ArgumentError
from batchnorm.outputs import SAID
from batchnorm.surgery import factory

OWN = """
from torch import nn
from torch.optim.swa_utils import AveragedModel

def net(): return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
def averaged(): return AveragedModel(net())
def wrapped(): return nn.ModuleDict({"module": net()})
def compiled(): return nn.ModuleDict({"_orig_mod": net()})
def averaged_wrapped(): return AveragedModel(wrapped())
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    net(torch.randn(8, 3))
    return net.state_dict()


def under(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state().items()}


def counted(prefix: str) -> dict[str, Tensor]:
    return {"n_averaged": torch.tensor(3), **under(prefix)}


def loaded(name: str, path: str) -> dict[str, Tensor]:
    return factory.made_model(f"own_nets:{name}", Path(path)).state_dict()


def refusal(path: str, name: str = "net") -> str:
    with pytest.raises(ArgumentError) as refused:
        loaded(name, path)
    said = str(refused.value)
    assert "\n" not in said
    assert "\x1b" not in said
    return said


@pytest.mark.parametrize("ending", ["pt", "ckpt", "safetensors"])
@pytest.mark.parametrize(
    "saved",
    [under(""), under("module."), under("_orig_mod."), under("module._orig_mod."), under("_orig_mod.module."),
     counted("module."), counted("module.module.")],
    ids=["plain", "parallel", "compiled", "compiled in parallel", "parallel compiled", "averaged", "averaged parallel"],
)  # fmt: skip
def test_wrappers_are_taken_off(saved: dict[str, Tensor], ending: str) -> None:
    write: Callable[..., Any] = save_file if ending == "safetensors" else torch.save
    write(saved, f"x.{ending}")
    found = loaded("net", f"x.{ending}")
    assert found.keys() == state().keys()
    assert all(torch.equal(value, found[name]) for name, value in state().items())


@pytest.mark.parametrize(
    ("name", "saved", "prefix"),
    [
        ("averaged", counted("module."), "module."),
        ("averaged", counted("module._orig_mod."), "module."),
        ("averaged_wrapped", counted("module.module."), "module.module."),
        ("wrapped", under(""), "module."),
        ("wrapped", under("module."), "module."),
        ("wrapped", counted("module.module."), "module."),
        ("compiled", under("module._orig_mod."), "_orig_mod."),
    ],
)
def test_wrappers_that_the_model_has_stay(name: str, saved: dict[str, Tensor], prefix: str) -> None:
    torch.save(saved, "x.pt")
    found = loaded(name, "x.pt")
    assert all(torch.equal(value, found[prefix + name]) for name, value in state().items())
    assert ("n_averaged" in found) == name.startswith("averaged")
    assert found.get("n_averaged", 3) == 3


@pytest.mark.parametrize(
    "saved",
    [
        {"state_dict": {f"model.{name}": value for name, value in state().items()}, "epoch": 3},  # as Lightning writes
        {"epoch": 3, "model": state(), "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        {"model_state_dict": counted("module."), "empty": {}},
    ],
)
def test_the_one_state_dict_of_a_checkpoint_is_taken(saved: dict[str, Any]) -> None:
    torch.save(saved, "x.ckpt")
    assert torch.equal(loaded("net", "x.ckpt")["0.weight"], state()["0.weight"])


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        (
            {"state_dict": state(), "ema": state(), "epoch": 1},
            "x.ckpt holds several state_dicts, state_dict, ema: choose one, --key ema",
        ),
        ({"epoch": 1, "lr": 0.1, "seed": 2, "name": "a", "best": 3}, "got a dict with epoch, lr, seed and 2 more"),
        ({}, "must hold a state_dict, tensors by name, got a dict with no keys"),
        ([1, 2], "must hold a state_dict, tensors by name, got list"),
        (nn.Linear(2, 2).state_dict(), "missing 0.weight, 0.bias, 1.weight and 3 more; unexpected weight, bias"),
        ({**state(), "2.weight": torch.ones(1)}, "does not fit `--model own_nets:net`: unexpected 2.weight"),
        ({**state(), "0.bias": torch.ones(9)}, "does not fit `--model own_nets:net`: 0.bias is (9,) in place of (4,)"),
    ],
)
def test_what_does_not_fit_is_named(saved: Any, says: str) -> None:
    torch.save(saved, "x.ckpt")
    said = refusal("x.ckpt")
    assert says in said
    assert len(said) <= SAID


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(nn.Linear(2, 2)))


def scripted(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # that it is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save(nn.Linear(2, 2), path),
        lambda path: torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=False),
        lambda path: torch.save({"state_dict": state(), "config": Path("x")}, path),
        pickled,
        scripted,
    ],
    ids=["model", "model of old", "with a path", "pickle", "script"],
)
def test_a_pickle_of_objects_is_refused_in_our_words(write: Callable[[Path], None]) -> None:
    write(Path("x.pt"))
    said = refusal("x.pt")
    assert "holds objects beyond tensors, which are not loaded, as a pickle can run code" in said
    assert "save `model.state_dict()`" in said
    assert "weights_only" not in said


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("damage", [lambda _: b"", lambda held: held[: len(held) // 2], lambda _: b"\xd7" * 99])
def test_a_damaged_file_is_told_by_the_kind_of_error(ending: str, damage: Callable[[bytes], bytes]) -> None:
    path = Path(f"x.{ending}")
    write: Callable[..., Any] = save_file if ending == "safetensors" else torch.save
    write(state(), path)
    path.write_bytes(damage(path.read_bytes()))
    said = refusal(str(path))
    assert re.match(rf"x\.{ending} cannot be read as weights: \w+Error\b", said), said
    assert "weights_only" not in said


@pytest.mark.parametrize(
    ("saved", "chosen"),
    [
        (lambda: {"state_dict": under("module."), "state_dict_ema": state()}, {"key": "state_dict_ema"}),
        (lambda: {"params": {"x": torch.ones(1)}, "params_ema": state()}, {"key": "params_ema"}),
        (lambda: {"ema": {"module": state(), "step": 3}, "step": 4}, {"key": "ema.module"}),
        (lambda: {"state_dict": under("encoder.") | {"head.weight": torch.ones(1)}}, {"prefix": "encoder."}),
        (lambda: {"state_dict": under("encoder.") | {"head.weight": torch.ones(1)}}, {"prefix": "encoder"}),
        (lambda: {"net.teacher": state(), "net": {"student": under("module.")}}, {"key": "net.teacher"}),
        (lambda: {"model": state(), "args": argparse.Namespace(lr=0.1, path="x")}, {}),
        (lambda: {"model": state(), "best": np.float64(0.5), "epoch": np.int64(3), "ok": np.bool_(True)}, {}),
    ],
)
def test_checkpoints_as_people_keep_them(saved: Callable[[], Any], chosen: dict[str, str]) -> None:
    torch.save(saved(), "x.pt")
    got = factory.made_model("own_nets:net", Path("x.pt"), **chosen).state_dict()
    assert all(torch.equal(got[name], value) for name, value in state().items())


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"key": "ema"}, "`--key ema` is not in x.pt: there is model, step and no ema"),
        ({"key": "step.more"}, "`--key step.more` is not in x.pt: there is nothing and no more"),
        ({"prefix": "encoder."}, "no weight in x.pt begins with `--prefix encoder.`, there are 0.weight, 0.bias"),
    ],
)
def test_what_is_not_in_a_checkpoint_is_named(chosen: dict[str, str], says: str) -> None:
    torch.save({"model": state(), "step": 3}, "x.pt")
    with pytest.raises(ArgumentError) as refused:
        factory.made_model("own_nets:net", Path("x.pt"), **chosen)
    assert str(refused.value).startswith(says)


def test_the_prefix_that_would_do_is_told() -> None:
    torch.save(under("student.") | {f"teacher.{name}": value for name, value in state().items()}, "x.pt")
    assert refusal("x.pt").endswith("; --prefix student. takes those that do")


def test_to_choose_among_weights_needs_weights() -> None:
    with pytest.raises(ArgumentError, match="give `--weights` too"):
        factory.made_model("own_nets:net", None, key="model")


def test_a_state_dict_that_lies_deeper_is_one_of_several() -> None:
    torch.save({"model": state(), "ema": {"module": state(), "decay": 0.9}}, "x.pt")
    assert "x.pt holds several state_dicts, model, ema.module: choose one" in refusal("x.pt")
    torch.save({"a": {"model": state()}, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, "x.pt")
    assert all(torch.equal(loaded("net", "x.pt")[name], value) for name, value in state().items())
