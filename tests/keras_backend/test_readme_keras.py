"""What the README and the examples show of Keras works on every backend."""

import importlib.util
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

from batchnorm.keras import BatchNormalization

ROOT = Path(__file__).parents[2]


def test_the_code_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (code,) = (block for block in blocks if "keras" in block)
    names: dict[str, object] = {}
    exec(code, names)
    model = names["model"]
    assert isinstance(model, keras.Model)
    model.compile("adam", "binary_crossentropy")
    model.fit(np.ones((40, 2), np.float32), np.ones(40), verbose=0)
    assert model.predict(np.ones((3, 2), np.float32), verbose=0).shape == (3, 1)


def test_the_code_that_the_study_recommends_runs() -> None:
    study = json.loads((ROOT / "docs" / "study" / "digits" / "results.json").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    exec(study["code"]["Keras"], names)
    model = names["model"]
    assert isinstance(model, keras.Model)
    assert any(isinstance(layer, BatchNormalization) for layer in model.layers)
    x, y = np.random.default_rng(0).random((60, 64)).astype(np.float32), np.arange(60) % 10
    first, *_, last = model.fit(x, y, batch_size=60, epochs=8, verbose=0).history["loss"]
    assert last < first


def test_the_example_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / "keras_placements.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "EPOCHS", 4)
    module.main()
    shown = capsys.readouterr().out
    for name in module.OPTIMIZERS:
        accuracy = re.search(rf"{name}\W+(0\.\d+|1\.000)", shown)
        assert accuracy is not None
        assert float(accuracy[1]) > 0.6
    alone, among = re.findall(r"0\.\d{3}$|0\.\d{3}(?=,)", shown.strip().splitlines()[-1])
    assert alone == among
