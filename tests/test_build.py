"""The wheel: what it holds, with a compiler and without."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = "batchnorm/kernels/libbatchnorm_native.so"
DECLARED = re.compile(r"^(?:int|int64_t|void|const char \*) ?(bn_\w+)\(", re.MULTILINE)


def build(folder: Path, **settings: str) -> zipfile.ZipFile:
    """Build a wheel with the tools of this environment, and environment variables of one's own."""
    command = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(tmp_path_factory.mktemp("wheel"), CMAKE_ARGS="-DCMAKE_CXX_FLAGS_RELEASE=-O0")  # to be quick


def test_one_wheel_serves_every_python(wheel: zipfile.ZipFile) -> None:
    assert re.search(r"/batchnorm-[\d.]+-py3-none-(?!any)\w+\.whl$", str(wheel.filename))


def test_the_wheel_holds_the_package_and_the_library(wheel: zipfile.ZipFile) -> None:
    package = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src" / "batchnorm").rglob("*.py")}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert package | {LIBRARY} <= held
    assert not {name for name in held if "__pycache__" in name or "csrc" in name}


def test_the_library_exports_what_the_header_declares(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    library = wheel.extract(LIBRARY, tmp_path)
    lines = subprocess.check_output(["nm", "-D", "--defined-only", library], text=True).splitlines()
    declared = set(DECLARED.findall((ROOT / "csrc" / "batchnorm.h").read_text("utf-8")))
    assert {"bn_forward", "bn_instruction_set", "bn_use_threads", "bn_bits_size"} <= declared
    assert {line.split()[-1] for line in lines} == declared


@pytest.mark.parametrize(
    "settings",
    [{"CXX": "/no/such/compiler"}, {"CMAKE_ARGS": "-DCMAKE_CXX_FLAGS_RELEASE=--no-such-option"}],
    ids=["no compiler", "a compiler that fails"],
)
def test_without_a_compiler_the_rest_is_built(settings: dict[str, str], tmp_path: Path) -> None:
    held = build(tmp_path, **settings).namelist()
    assert "batchnorm/kernels/eager.py" in held
    assert LIBRARY not in held


def test_the_source_distribution_holds_the_sources(tmp_path: Path) -> None:
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").iterdir() if p.is_file()}
    assert sources | {"CMakeLists.txt", "LICENSE", "src/batchnorm/kernels/eager.py"} <= held
    assert not {name for name in held if name.endswith((".so", ".pyc"))}
