"""What the README shows is what was committed, and what it tells to type works."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from batchnorm.study.claims import speed
from batchnorm.study.design import Settings
from batchnorm.torch import BatchNorm1d

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_findings_are_those_of_the_committed_run() -> None:
    path = ROOT / "docs" / "study" / "update.py"
    spec = importlib.util.spec_from_file_location("update", path)
    assert spec is not None
    assert spec.loader is not None
    update = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update)
    shown = update.BETWEEN.search(README)
    assert shown is not None
    assert shown.group() == update.findings(update.results())
    assert "--out docs/study/digits" in update.results()["command"]


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [c for c in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "keras" not in c]
    layer, tools, advice, study = found
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    names: dict[str, Any] = {"network": network, "inputs": torch.randn(90, 4), "labels": torch.randint(3, (90,))}
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    given = {"model": model, "loader": torch.randn(90, 4).split(30), "x": torch.randn(8, 4)}
    exec(tools, given)
    assert model[1].virtual_batch_size == 32
    assert isinstance(given["deployed"][1], torch.nn.Identity)
    exec(layer + advice, names)
    assert 1 < names["advice"].batch_size <= 90
    assert names["images"].shape == (32, 64, 56, 56)
    assert names["tokens"].shape == (16, 20, 512)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Settings, "short_steps", property(lambda _: 10))
    monkeypatch.setattr(Settings, "steps", property(lambda _: 10))
    monkeypatch.setattr("batchnorm.study.claims.chosen_claims", lambda _, quick: [speed.CLAIM])
    given = {"frame": pd.read_csv(ROOT / "examples" / "placements.csv")}
    exec(study, given)
    assert len(given["results"].answer) == 3
    assert (tmp_path / "report" / "train.py").exists()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_every_make_target_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)\b", README)) - {"and"}
    assert named
    assert named <= targets


# Keras' run on each backend, in keras_backend/.
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - set((ROOT / "examples").glob("keras_*.py")))

PRINTED = {
    "torch_placements": "epoch 20  test accuracy 0.8",
    "batch_size_loop": "gradient noise (Bcrit)",
    "recalibrate_digits": "recalibrate sorted   accuracy 9",
    "study_own_model": "classes [145 162 157 136]: logits (600, 4)",
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_examples_run(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location(example.stem, example)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "main"):
        module.main()
        assert PRINTED[example.stem] in capsys.readouterr().out
    else:
        table = (ROOT / "examples" / "placements.csv").read_text()
        assert module.make_placements().to_csv(index=False) == table
