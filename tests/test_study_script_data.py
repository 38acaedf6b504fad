"""What the generated training scripts read: what the study read, bit for bit; and names of users stay text."""

import ast
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from batchnorm.study.arrays import from_factory
from batchnorm.study.script import scripts
from batchnorm.study.tables import from_frame, table
from scripting import ROWS, SETTING, assert_clean, assert_same_data, messy, names_of, suited, typed

HOSTILE = [
    "it's", 'say "hi"', '"""', "'''", "back\\slash\\", "new\nline", "tab\tand\rreturn", "#comment", "{{ 7 * 7 }}",
    "{% raw %}", "{# note #}", '"); raise SystemExit("', "'+str(1/0)+'", "ünïcode 数字", "\u202eright\u2028", "%s {0}",
]  # fmt: skip


@pytest.mark.parametrize("target", ["kind", "value", "yes"])
@pytest.mark.parametrize("seed", range(3))
def test_a_messy_table_is_read_as_the_study_reads_it(seed: int, target: str, tmp_path: Path) -> None:
    path = tmp_path / "messy's table.csv"
    pd.DataFrame(messy(seed)).to_csv(path, index=False)
    data = table(path, target)
    assert {column.kind for column in data.recipe.columns} >= {"number", "categories", "date", "dropped"}  # type: ignore[union-attr]
    for framework, source in scripts(data, replace(SETTING, metric=suited(data)), folder=tmp_path).items():
        assert_same_data(source, tmp_path / f"{framework}.py", data)


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "t.tsv": lambda frame, path: frame.to_csv(path, sep="\t", index=False),
    "t.csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "latin.csv": lambda frame, path: frame.to_csv(path, index=False, encoding="latin-1"),
    "marked.csv": lambda frame, path: frame.to_csv(path, index=False, sep=";", decimal=",", encoding="utf-8-sig"),
    "bare.csv": lambda frame, path: frame.to_csv(path, index=False, header=False),
    "t.xlsx": lambda frame, path: frame.to_excel(path, index=False),
    "t.parquet": lambda frame, path: frame.to_parquet(path),
    "t.feather": lambda frame, path: frame.to_feather(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_is_read_as_the_study_reads_it(name: str, tmp_path: Path) -> None:
    WRITERS[name](typed(), tmp_path / name)
    data = table(tmp_path / name, "-1")
    assert data.x.shape[1] > 6
    source = scripts(data, SETTING, folder=tmp_path)["PyTorch"]
    assert_same_data(source, tmp_path / "train.py", data)


def test_a_data_frame_is_read_from_where_the_script_says_that_it_is_saved(tmp_path: Path) -> None:
    data = from_frame(typed(), "kind")
    source = scripts(data, SETTING, folder=tmp_path)["PyTorch"]
    assert "frame.to_parquet(path)" in source
    typed().to_parquet(tmp_path / "table.parquet")
    assert_same_data(source, tmp_path / "train.py", data)


def test_many_columns_share_lines(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    frame = pd.DataFrame(random.normal(size=(ROWS, 300)).round(2), columns=[f"pixel {i}" for i in range(300)])
    frame.assign(kind=random.choice(["a", "b"], ROWS)).to_csv(tmp_path / "wide.csv", index=False)
    data = table(tmp_path / "wide.csv", "kind")
    source = scripts(data, SETTING, folder=tmp_path)["PyTorch"]
    assert_same_data(source, tmp_path / "train.py", data)
    assert len(source.splitlines()) < 300
    assert max(map(len, source.splitlines())) <= 120


def without_constants(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.value = None
    return ast.dump(tree)


def odd_frame(names: list[str]) -> pd.DataFrame:
    """Return a table with columns, categories, classes and a target of these names."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({f"{name} {i}": random.normal(size=ROWS).round(2) for i, name in enumerate(names)})
    texts, classes = random.choice(names, ROWS), random.choice(names[:3], ROWS)
    return frame.assign(**{f"text {names[0]}": texts, f"class {names[1]}": classes})


def test_names_of_users_stay_text(tmp_path: Path) -> None:
    shapes: dict[str, set[str]] = {"PyTorch": set(), "Keras": set()}
    harmless = [f"name {chr(97 + i)}" for i in range(len(HOSTILE))]
    for name, names in (('""" # {{ 7 * 7 }}', HOSTILE), ("harmless", harmless)):
        path = tmp_path / f"{name}.parquet"
        odd_frame(names).to_parquet(path)
        data = table(path, "-1")
        for framework, source in scripts(data, replace(SETTING, reason=(" ".join(names),)), folder=tmp_path).items():
            assert_same_data(source, tmp_path / f"{framework}.py", data)
            shapes[framework].add(without_constants(source))
    assert [len(shape) for shape in shapes.values()] == [1, 1]


def test_cells_of_users_stay_text(tmp_path: Path) -> None:
    frame = odd_frame(HOSTILE).set_axis([f"column {i}" for i in range(len(HOSTILE) + 2)], axis=1)
    frame.to_csv(tmp_path / "cells.csv", index=False)
    data = table(tmp_path / "cells.csv", "-1")
    assert set(data.classes) == set(HOSTILE[:3])
    assert_same_data(scripts(data, SETTING, folder=tmp_path)["PyTorch"], tmp_path / "train.py", data)


def test_a_factory_is_imported_where_its_names_are_of_python_and_looked_up_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "import numpy as np",
        "def pair():",
        "    random = np.random.default_rng(0)",
        "    return random.normal(size=(90, 2, 3)), random.choice([3, 5, 9], 90)",
        "np_pair, data, str = pair, pair(), pair",
    ]
    for module in ("scriptdata", "script-data"):
        (tmp_path / f"{module}.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report").mkdir()
    for name in ("scriptdata:pair", "scriptdata:data", "script-data:pair", "scriptdata:str"):
        monkeypatch.syspath_prepend(str(tmp_path))
        data = from_factory(name)
        source = scripts(data, SETTING, folder=Path("report"))["PyTorch"]
        assert ("importlib" in source) == (name in ("script-data:pair", "scriptdata:str"))
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
        sys.modules.pop("scriptdata", None)
        names = names_of(source, tmp_path / "report" / "train.py")
        assert_clean(tmp_path / "report")
        x, y = names["load"]()
        np.testing.assert_array_equal(x, data.x)
        np.testing.assert_array_equal(y, data.y)
        assert isinstance(names["network"]()[0], nn.Flatten)
        assert names["network"]()(torch.zeros(5, 2, 3)).shape == (5, 3)
