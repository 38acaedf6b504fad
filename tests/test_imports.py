"""Who imports whom, what an import brings along, and that each of these checks can fail."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import batchnorm
from layering import PACKAGE, faults, modules

SOURCE = Path(batchnorm.__file__).parents[1]
BROUGHT = """
import sys
before = set(sys.modules)
import {module}
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(*sorted(new - set(sys.stdlib_module_names)))
"""
WITHOUT_TORCH = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
import batchnorm.torch
"""


def python(code: str, path: Path = SOURCE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )


def brought(module: str, path: Path = SOURCE) -> set[str]:
    """Return what is imported, beyond the standard library, by importing a module in a fresh interpreter."""
    done = python(BROUGHT.format(module=module), path)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("part", ["", ".errors", ".conventions", ".layout", ".statistics", ".reference", ".kernels"])
def test_the_definition_brings_numpy_at_most(part: str) -> None:
    assert PACKAGE in brought(PACKAGE + part)
    assert brought(PACKAGE + part) <= {PACKAGE, "numpy"}


def test_the_torch_layer_brings_torch_and_no_tool() -> None:
    new = brought(f"{PACKAGE}.torch")
    assert "torch" in new
    assert not new & {"sklearn", "pandas", "matplotlib", "scipy", "typer", "rich", "keras", "jax"}


def test_what_an_import_brings_is_seen(tmp_path: Path) -> None:
    (tmp_path / "greedy").mkdir()
    (tmp_path / "greedy" / "__init__.py").write_text("import array_api_compat")
    assert brought("greedy", tmp_path) == {"greedy", "array_api_compat"}


def test_a_missing_framework_is_named_with_its_extra() -> None:
    done = python(WITHOUT_TORCH)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "batchnorm.errors.MissingExtraError: `batchnorm.torch` needs PyTorch, which is not installed: "
        "pip install 'batchnorm[torch]'"
    )


def test_imports_point_down() -> None:
    assert faults(SOURCE) == []


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for part in ("cli", "study", "surgery", "torch", "keras", "kernels", "statistics", "layout", "reference", "errors"):
        files = {f"{part}/__init__.py": "", **files}
    for name, code in {"__init__.py": "__version__ = '0'", **files}.items():
        (root / PACKAGE / name).parent.mkdir(parents=True, exist_ok=True)
        (root / PACKAGE / name).write_text(code, "utf-8")
    return root


@pytest.mark.parametrize(
    ("file", "code", "fault"),
    [
        ("statistics/__init__.py", "import batchnorm.torch", "batchnorm.statistics imports batchnorm.torch"),
        ("errors/__init__.py", "from batchnorm import layout", "batchnorm.errors imports batchnorm.layout"),
        (
            "reference/__init__.py",
            "from batchnorm.layout import axes_of",
            "batchnorm.reference imports batchnorm.layout.axes_of",
        ),
        (
            "torch/layers.py",
            "from batchnorm.study.run import a",
            "batchnorm.torch.layers imports batchnorm.study.run.a",
        ),
        ("torch/layers.py", "def f():\n    from ..keras import a", "batchnorm.torch.layers imports batchnorm.keras.a"),
        ("torch/deep/a.py", "from ...cli import b", "batchnorm.torch.deep.a imports batchnorm.cli.b"),
        ("study/__init__.py", "from ..cli import a", "batchnorm.study imports batchnorm.cli.a"),
        ("kernels/eager.py", "if True:\n    from .. import torch", "batchnorm.kernels.eager imports batchnorm.torch"),
        ("__init__.py", "from .errors import E", "batchnorm imports batchnorm.errors.E"),
        ("layout/__init__.py", "import torch.nn", "batchnorm.layout imports torch"),
        ("reference/__init__.py", "from scipy import stats", "batchnorm.reference imports scipy"),
        ("helpers.py", "", "batchnorm.helpers is no part of the design"),
    ],
)
def test_an_import_that_does_not_point_down_is_found(tmp_path: Path, file: str, code: str, fault: str) -> None:
    assert faults(write_tree(tmp_path, {file: code})) == [fault]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("cli/__init__.py", "from batchnorm import __version__, study"),
        ("study/run.py", "from batchnorm.study import a\nfrom . import b\nfrom ..surgery import c\nimport pandas"),
        ("torch/layers.py", "from .. import errors, __version__\nfrom ..kernels import a\nimport torch"),
        ("statistics/__init__.py", "from batchnorm.layout import axes_of\nimport math"),
        ("reference/__init__.py", "import numpy as np\nfrom ..errors import E"),
    ],
)
def test_an_import_that_points_down_passes(tmp_path: Path, file: str, code: str) -> None:
    assert faults(write_tree(tmp_path, {file: code})) == []


def missing_names(name: str, path: Path) -> list[str]:
    """Return the names in `__all__` that the module lacks; importing it is left to modules that have one."""
    tree = ast.parse(path.read_text("utf-8"))
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    if not any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
        return []
    module = importlib.import_module(name)
    return [f"{name}.{public}" for public in module.__all__ if not hasattr(module, public)]


def test_public_names_exist() -> None:
    assert [missing for name, path in modules(SOURCE) for missing in missing_names(name, path)] == []


def test_a_public_name_that_does_not_exist_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "boastful.py"
    path.write_text("__all__ = ['here', 'nowhere']\nhere = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert missing_names("boastful", path) == ["boastful.nowhere"]
