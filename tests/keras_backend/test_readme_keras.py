"""What the README and the examples show of Keras works on every backend."""

import importlib.util
import json
import re
import runpy
from pathlib import Path

import keras
import numpy as np
import pytest

from batchnorm.keras import BatchNormalization
from batchnorm.study.script import Setting, scripts
from batchnorm.study.shipped import digits

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


def test_the_script_that_the_study_of_digits_recommends_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = json.loads((ROOT / "docs" / "study" / "digits" / "results.json").read_text(encoding="utf-8"))
    recommended = {k: tuple(v) if isinstance(v, list) else v for k, v in study["recommended"].items()}
    script = tmp_path / "train_keras.py"
    script.write_text(scripts(digits(), Setting(**recommended), folder=tmp_path)["Keras"], encoding="utf-8")
    names = runpy.run_path(str(script), run_name="__main__")
    assert any(isinstance(layer, BatchNormalization) for layer in names["network"]().layers)
    printed = re.search(r"accuracy on 36\d test rows: (0\.\d+)", capsys.readouterr().out)
    assert printed is not None
    assert float(printed[1]) >= study["data"]["goals"]["near"]


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
