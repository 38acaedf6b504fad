"""Finished runs on disk: a file a chunk, whole or not there, and believed only as it was written."""

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from batchnorm import __version__
from batchnorm.outputs import plain, write_whole
from batchnorm.study.data import DataError, Dataset
from batchnorm.study.training import Outcome, Problem, Spec

SOURCES = Path(__file__).parents[1]
FIGURES = 8  # characters of a file's name that tell the data
NAME = re.compile(rf"(?P<data>[0-9a-f]{{{FIGURES}}})-[0-9a-f]{{24}}\.json")
DRAFT = re.compile(r"\." + NAME.pattern)
NUMERICAL = ("torch", "numpy", "scikit-learn")  # libraries that another version of may give other runs


def restored(value: Any) -> Any:
    """Return what `plain` made into None as NaN again."""
    if isinstance(value, dict):
        return {k: restored(v) for k, v in value.items()}
    if isinstance(value, list):
        return [restored(v) for v in value]
    return math.nan if value is None else value


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all.

    Raises:
        DataError: in one line, if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; what is finished is kept for --resume") from None


def fingerprint(data: Dataset) -> str:
    """Return what tells the contents of a dataset from those of others: rows, targets and classes, not names."""
    digest = hashlib.sha256(repr((data.x.shape, data.x.dtype, data.y.shape, data.y.dtype, data.task)).encode())
    digest.update(repr(data.classes).encode())
    digest.update(data.x.tobytes())
    digest.update(data.y.tobytes())
    return digest.hexdigest()


class Kept:
    """The finished runs of a study, under the fingerprint of everything that their outcomes depend on.

    Attributes:
        folder: Where they are.
    """

    def __init__(self, folder: Path, problem: Problem) -> None:
        """Take the fingerprint of the problem and of the code: this package's, and that of the user's model."""
        self.folder = folder
        self._data = fingerprint(problem.datasets["main"])[:FIGURES]
        self._written: set[str] = set()
        self._base = hashlib.sha256(repr((__version__, _versions(), problem.model, problem.own_normalizes)).encode())
        own = [problem.model]
        for name, data in problem.datasets.items():
            self._base.update(
                repr((name, data.metric, data.scaling, data.inputs, data.loss, fingerprint(data))).encode()
            )
            own.append(data.loss and data.loss.name)
        self._base.update(_package())
        for name in own:
            for file in _sources_of(name) if name is not None else ():
                self._base.update(file.read_bytes())

    def file(self, chunk: Sequence[Spec]) -> Path:
        """Return where the outcomes of a chunk are, or go."""
        key = self._base.copy()
        key.update(repr(list(chunk)).encode())
        return self.folder / f"{self._data}-{key.hexdigest()[:24]}.json"

    def write(self, chunk: Sequence[Spec], outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Write outcomes, and return them as they are read again.

        Raises:
            DataError: in one line, if they cannot be written.
        """
        content = json.loads(json.dumps(plain([asdict(outcome) for outcome in outcomes])))
        file = self.file(chunk)
        self._written.add(file.name)
        write_json(file, {"checksum": _checksum(content), "outcomes": content})
        return _outcomes(content)

    def read(self, chunk: Sequence[Spec]) -> list[Outcome] | None:
        """Return the outcomes of a chunk; None if there are none, or not as they were written."""
        file = self.file(chunk)
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["checksum"] != _checksum(stored["outcomes"]):
                return None
            outcomes = _outcomes(stored["outcomes"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        if len(outcomes) != len(chunk):
            return None
        self._written.add(file.name)
        return outcomes

    def discard(self) -> None:
        """Remove the runs of this study, and the folders if nothing else is in them."""
        for name in self._written:
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # where there is something else
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def tidy(self) -> None:
        """Remove the runs of earlier studies, and drafts that were cut short, now that this study is finished."""
        for file in self.folder.iterdir() if self.folder.is_dir() else ():
            if DRAFT.match(file.name) or (NAME.fullmatch(file.name) and file.name not in self._written):
                file.unlink(missing_ok=True)


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _outcomes(content: Any) -> list[Outcome]:
    return [Outcome(**restored(outcome)) for outcome in content]


def _versions() -> list[tuple[str, str]]:
    versions: list[tuple[str, str]] = []
    for name in NUMERICAL:
        try:
            versions.append((name, version(name)))
        except PackageNotFoundError:
            versions.append((name, ""))
    return versions


@cache
def _package() -> bytes:
    """Return what tells the code of this package that training runs through from that of other versions."""
    files = sorted(file for part in ("study", "torch", "surgery", "kernels") for file in (SOURCES / part).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()


def _sources_of(name: str) -> Iterable[Path]:
    """Return the file that a `module:factory` of the user's has been imported from, and its neighbours that have."""
    top = sys.modules.get(name.partition(":")[0].partition(".")[0])
    origin = getattr(top, "__file__", None)
    if origin is None:
        return []
    root = Path(origin).parent
    files = {Path(file) for m in list(sys.modules.values()) if (file := getattr(m, "__file__", None))}
    beside = {
        file for file in files if file.is_relative_to(root) and "site-packages" not in file.relative_to(root).parts
    }
    chosen = {Path(origin)} if root.name == "site-packages" else beside
    return sorted(file for file in chosen if file.suffix == ".py" and file.is_file())
