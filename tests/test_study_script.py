"""The generated training scripts: what is recommended, scored as the study scores, learned, and easy to read."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from batchnorm.study.data import Dataset
from batchnorm.study.networks import ACTIVATIONS, groups_of
from batchnorm.study.scores import METRICS
from batchnorm.study.script import Setting, scripts
from batchnorm.study.shipped import digits
from batchnorm.study.tables import table
from scripting import ROWS, SETTING, assert_clean, finish, last_score, messy, names_of, suited, typed
from tolerance import FEW_ROUNDINGS, OF_MANY_DRAWS, PROJECT_BOUND, SINGLE

LONGEST = {"digits": 115, "table": 150}  # lines of a script


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Train on one thread: small networks gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_nothing_is_written_for_data_that_only_the_caller_has() -> None:
    x, y = np.zeros((40, 2)), np.arange(40) % 2
    arrays = Dataset("arrays", "two arrays", x, y, "classification", ("0", "1"))
    assert scripts(arrays, SETTING) == {}
    assert scripts(digits(), replace(SETTING, activation="own")) == {}


RANDOM = np.random.default_rng(4)
TASKS = {
    "classification": (RANDOM.normal(size=(50, 3)), RANDOM.integers(0, 3, 50)),
    "two classes": (RANDOM.normal(size=(50, 2)).round(1), RANDOM.integers(0, 2, 50)),
    "a class that is not there": (RANDOM.normal(size=(50, 4)), RANDOM.choice([0, 1, 3], 50)),
    "labels": (RANDOM.normal(size=(50, 3)).round(1), RANDOM.integers(0, 2, (50, 3)).astype(float)),
    "regression": (RANDOM.normal(size=(50, 1)), RANDOM.normal(size=(50, 1))),
    "two values": (RANDOM.normal(size=(50, 2)), RANDOM.normal(size=(50, 2))),
}
SCORED = [
    (metric, case)
    for metric in METRICS
    for case in TASKS
    if {"labels": "labels", "regression": "regression", "two values": "regression"}.get(case, "classification")
    in METRICS[metric].tasks
]


def arrays_of(case: str, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Return a dataset of a task, as if a factory had returned it."""
    output, y = TASKS[case]
    task: Any = {"labels": "labels", "regression": "regression", "two values": "regression"}.get(case, "classification")
    monkeypatch.setattr("batchnorm.study.script_data.call_factory", lambda *_: (output, y))
    monkeypatch.setattr("batchnorm.study.script_data.named", lambda *_: len)
    classes = tuple(map(str, range(output.shape[1]))) if task != "regression" else ()
    return Dataset("module:arrays", "arrays", output, y, task, classes)


@pytest.mark.parametrize(("metric", "case"), SCORED)
def test_the_score_is_that_of_the_study(
    metric: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, y = TASKS[case]
    source = scripts(arrays_of(case, monkeypatch), replace(SETTING, metric=metric))["PyTorch"]
    expected = METRICS[metric].score(torch.from_numpy(output)[None], torch.from_numpy(y)[None])
    assert names_of(source, tmp_path / "train.py")["score"](output, y) == pytest.approx(
        expected.item(), **FEW_ROUNDINGS
    )


LAYERS = {"batch": nn.modules.batchnorm._BatchNorm, "layer": nn.LayerNorm, "group": nn.GroupNorm}
VARIANTS = [
    replace(SETTING, placement=placement, norm=norm, activation=activation, hidden=hidden, optimizer=optimizer)
    for placement, norm, activation, hidden, optimizer in (
        ("before", "batch", "relu", (100, 100, 100), "sgd"),
        ("after", "batch", "sigmoid", (64, 32), "momentum"),
        ("none", "batch", "tanh", (50,), "rmsprop"),
        ("none", "batch", "relu", (), "sgd"),
        ("before", "layer", "gelu", (50,), "adam"),
        ("after", "group", "silu", (64, 48), "adam"),
        ("before", "group", "leaky-relu", (100, 64), "sgd"),
        ("before", "tanh", "elu", (32, 16), "momentum"),
        ("none", "init", "relu", (100, 50), "sgd"),
    )
]


@pytest.mark.parametrize("setting", VARIANTS, ids=lambda s: f"{s.placement}-{s.norm}-{s.activation}")
def test_the_network_is_the_recommended_one(setting: Setting, tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = names_of(scripts(digits(), setting)["PyTorch"], tmp_path / "train.py")
    model = names["network"]()
    assert model(torch.randn(7, 64)).shape == (7, 10)
    kind = LAYERS.get(setting.norm) or names.get("DynamicTanh")
    expected: list[Any] = []
    for _ in setting.hidden:
        activation = ACTIVATIONS[setting.activation].module
        between = {"before": [kind, activation], "after": [activation, kind], "none": [activation]}
        expected += [nn.Linear, *between[setting.placement]]
    expected.append(nn.Linear)
    assert len(model) == len(expected)
    assert all(isinstance(layer, of) for layer, of in zip(model, expected, strict=True))
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [*setting.hidden, 10]
    assert all((layer.bias is None) == (setting.placement == "before") for layer in linear[:-1])
    assert all(layer.num_groups == groups_of(layer.num_channels) for layer in model if isinstance(layer, nn.GroupNorm))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_weights_start_as_in_the_study(activation: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    setting = replace(SETTING, activation=activation, hidden=(1000, 500))
    model = names_of(scripts(digits(), setting)["PyTorch"], tmp_path / "train.py")["network"]()
    for layer in (model[0], model[3]):
        expected = ACTIVATIONS[activation].std(layer.in_features, layer.out_features)
        assert layer.weight.std().item() == pytest.approx(expected, **OF_MANY_DRAWS)


def test_a_start_from_the_data_is_normalised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = names_of(scripts(digits(), VARIANTS[-1])["PyTorch"], tmp_path / "train.py")
    model, x = names["network"](), torch.randn(60, 64) + 3
    names["start_normalised"](model, x)
    for layer in model[:-1]:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            assert x.mean(0).abs().max() < PROJECT_BOUND
            assert (x.std(0, correction=0) - 1).abs().max() < PROJECT_BOUND


def test_scripts_are_clean_and_short(tmp_path: Path) -> None:
    for i, setting in enumerate(VARIANTS):
        for framework, source in scripts(digits(), replace(setting, metric=[*METRICS][i % 4])).items():
            (tmp_path / f"digits_{i}_{framework}.py").write_text(source, encoding="utf-8")
    path = tmp_path / "t.csv"
    pd.DataFrame(messy(1)).to_csv(path, index=False)
    typed().to_parquet(tmp_path / "t.parquet")
    for i, data in enumerate([table(path, "kind"), table(path, "value"), table(tmp_path / "t.parquet", "kind")]):
        for framework, source in scripts(data, replace(SETTING, metric=suited(data)), folder=tmp_path).items():
            (tmp_path / f"table_{i}_{framework}.py").write_text(source, encoding="utf-8")
    assert_clean(tmp_path)
    few = tmp_path / "few.csv"
    typed()[["count", "narrow", "kind"]].to_csv(few, index=False)
    for framework, source in scripts(digits(), SETTING).items():
        assert len(source.splitlines()) <= LONGEST["digits"], framework
    for framework, source in scripts(table(few, "kind"), SETTING, folder=tmp_path).items():
        assert len(source.splitlines()) <= LONGEST["table"], framework


def test_the_pytorch_script_reads_the_digits(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(scripts(digits(), SETTING, folder=tmp_path)["PyTorch"], encoding="utf-8")
    printed = finish([sys.executable, str(tmp_path / "train.py")])
    assert last_score(printed, "accuracy") > 0.9
    images = digits()
    chances = names_of((tmp_path / "train.py").read_text(encoding="utf-8"), tmp_path / "train.py")["predict"](images.x)
    assert chances.shape == (1797, 10)
    assert np.mean(chances.argmax(1) == images.y) > 0.9
    assert chances.sum(1) == pytest.approx(np.ones(1797), **SINGLE)


def test_the_pytorch_script_learns_classes_of_a_table(tmp_path: Path) -> None:
    pd.DataFrame(messy(0)).to_csv(tmp_path / "t.csv", index=False)
    data = table(tmp_path / "t.csv", "kind")
    (tmp_path / "report").mkdir()
    script = tmp_path / "report" / "train.py"
    source = scripts(data, replace(SETTING, rate=0.1, metric="auc"), folder=script.parent)["PyTorch"]
    script.write_text(source, encoding="utf-8")
    assert last_score(finish([sys.executable, str(script)]), "AUC") > 0.7
    names = names_of(source, script)
    chances = names["predict"](names["read"]())
    assert list(chances.columns) == list(data.classes)
    assert len(chances) == ROWS
    pd.testing.assert_frame_equal(chances.iloc[5:6], names["predict"](names["read"]().iloc[5:6]), rtol=PROJECT_BOUND)


def test_the_pytorch_script_learns_values_of_a_table(tmp_path: Path) -> None:
    frame = typed().drop(columns="kind").assign(value=lambda t: 50 + 3 * t["count"] - 20 * t["narrow"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = table(tmp_path / "t.csv", "value")
    script = tmp_path / "train.py"
    source = scripts(data, replace(SETTING, rate=0.05, metric="r2"), folder=tmp_path)["PyTorch"]
    script.write_text(source, encoding="utf-8")
    assert last_score(finish([sys.executable, str(script)]), "R²") > 0.6
    names = names_of(source, script)
    predicted = names["predict"](names["read"]())
    assert np.corrcoef(predicted, data.y)[0, 1] > 0.9
    assert abs(predicted.mean() - data.y.mean()) < data.y.std() / 4  # in the units of the table


DRIVER = """
import runpy, sys
import numpy as np
for path in sys.argv[2:]:
    names = runpy.run_path(path)
    model = names["network"]()
    if "start_normalised" in names:
        names["start_normalised"](model, np.random.default_rng(0).normal(3, 1, (60, 64)).astype("float32"))
    weights = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    print(weights, names["run"](model, np.zeros((3, 64), "float32")).shape)
names = runpy.run_path(sys.argv[1], run_name="__main__")
x, y = names["load"]()
print("predicted", np.mean(names["predict"](x).argmax(1) == y))
"""


def test_the_keras_script_reads_the_digits_and_has_the_same_networks(tmp_path: Path) -> None:
    expected: list[str] = []
    paths: list[str] = []
    for i, setting in enumerate(VARIANTS):
        both = scripts(digits(), setting)
        model = names_of(both["PyTorch"], tmp_path / "train.py")["network"]()
        expected.append(f"{sum(weight.numel() for weight in model.parameters())} (3, 10)")
        paths.append(str(tmp_path / f"variant_{i}.py"))
        Path(paths[-1]).write_text(both["Keras"], encoding="utf-8")
    main, driver = tmp_path / "train_keras.py", tmp_path / "driver.py"
    main.write_text(scripts(digits(), SETTING, folder=tmp_path)["Keras"], encoding="utf-8")
    driver.write_text(DRIVER)
    printed = finish([sys.executable, str(driver), str(main), *paths], KERAS_BACKEND="torch").strip().splitlines()
    assert printed[: len(VARIANTS)] == expected
    assert last_score("\n".join(printed[:-1]), "accuracy") > 0.9
    assert float(printed[-1].removeprefix("predicted ")) > 0.9


def test_an_epoch_leaves_out_a_last_batch_of_few_rows_and_training_ends_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed()[["count", "narrow", "kind"]][:102].to_csv(tmp_path / "t.csv", index=False)
    data = table(tmp_path / "t.csv", "kind")
    setting = replace(SETTING, batch_size=60, steps=30)
    names = names_of(scripts(data, setting, folder=tmp_path)["PyTorch"], tmp_path / "train.py")
    assert (names["EPOCHS"], names["PATIENCE"]) == (30, 10)  # one batch of 60 an epoch: 60 or 61 rows train
    batches: list[int] = []
    network = names["network"]

    def watched() -> nn.Module:
        model = network()
        model.register_forward_hook(lambda module, inputs, _: batches.append(len(inputs[0]) if module.training else 0))
        return model

    names["network"] = watched
    names["main"]()
    assert set(batches) == {0, 60}
    ends = int(capsys.readouterr().out.splitlines()[-2].rsplit(" ", 1)[1])
    assert sum(size > 0 for size in batches) == min(ends + names["PATIENCE"], names["EPOCHS"])
    scores = iter([0.5, 0.6, *[0.1] * 40])
    names |= {"score": lambda *_: next(scores), "EPOCHS": 40, "PATIENCE": 4}
    names["main"]()
    assert "0.600, after epoch 2" in capsys.readouterr().out
    assert next(scores) == 0.1
    assert len([*scores]) == 40 - 4 - 2  # those of four epochs, the one of the test rows, and the one looked at


OWN = """
from torch import nn
from batchnorm.torch import BatchNorm1d
def plain():
    return nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))
def asked(outputs, inputs):
    return nn.Sequential(nn.Linear(inputs, 30), nn.ReLU(), nn.Linear(30, outputs))
def normalised():
    return nn.Sequential(nn.Linear(64, 30), BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 10))
"""


@pytest.mark.parametrize(
    ("factory", "placement", "kinds"),
    [
        ("plain", "before", "Linear BatchNorm ReLU Linear"),
        ("asked", "after", "Linear ReLU BatchNorm Linear"),
        ("plain", "none", "Linear ReLU Linear"),
        ("normalised", "before", "Linear BatchNorm1d ReLU Linear"),
        ("normalised", "none", "Linear BatchNorm1d ReLU Linear"),
    ],
)
def test_a_model_of_the_users_own_is_imported_and_normalised_where_that_is_recommended(
    factory: str, placement: str, kinds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "ownscript.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("ownscript", None)
    setting = replace(SETTING, placement=placement, activation="own", rate=0.2)
    written = scripts(digits(), setting, model=f"ownscript:{factory}")
    assert list(written) == ["PyTorch"]
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "train.py").write_text(written["PyTorch"], encoding="utf-8")
    assert_clean(tmp_path / "report")
    names = names_of(written["PyTorch"], tmp_path / "train.py")
    model = names["network"](torch.randn(9, 64))
    leaves = [module for module in model.modules() if not [*module.children()]]
    assert " ".join(type(leaf).__name__ for leaf in leaves) == kinds
    names["main"]()
    assert last_score(capsys.readouterr().out, "accuracy") > 0.9
    assert np.mean(names["predict"](digits().x).argmax(1) == digits().y) > 0.9
    remembered = [value for key, value in torch.load(tmp_path / "train.pt")["weights"].items() if "running_mean" in key]
    assert [bool(mean.any()) for mean in remembered] == [placement != "none"] * kinds.count("BatchNorm")
