"""The folder of a report: whether it can be written, and that nothing in it is lost that somebody may want."""

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from batchnorm.errors import ArgumentError

RUNS = "runs"
# What a study writes, and words by which a file of that name shows that a study has written it.
MARKS = {
    "results.json": '"command"',
    "timings.json": '"step_seconds"',
    "index.html": "batchnorm study",
    "train.py": "batchnorm study",
    "train_keras.py": "batchnorm study",
}
PROBE = 2**20  # bytes that must be free
SAID = 200  # characters of a path in a message
WAY_OUT = "name another folder with --out"


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written, or holds files of a report's names that no study has written.

    Raises:
        ArgumentError: in one line; nothing is changed.
    """
    try:
        with suppress(FileNotFoundError):
            folder.stat()  # raises for a name that is too long
        nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not nearest.is_dir():
            raise ArgumentError(f"--out {folder} cannot be a folder, as {nearest} is a file; {WAY_OUT}")
        for name, mark in MARKS.items():
            if (folder / name).exists() and not _is_ours(folder / name, mark):
                raise ArgumentError(f"{folder / name} was not written by a study; {WAY_OUT}")
        if (folder / RUNS).exists() and not (folder / RUNS).is_dir():
            raise ArgumentError(f"{folder / RUNS} is not a folder of runs; {WAY_OUT}")
        for place in {nearest, folder / RUNS if (folder / RUNS).is_dir() else nearest}:
            check_writable(place)
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise _unwritable(folder, error) from None


def _is_ours(file: Path, mark: str) -> bool:
    return stat.S_ISREG(file.stat().st_mode) and mark in file.read_text(encoding="utf-8", errors="replace")


def check_writable(folder: Path) -> None:
    """Write a file into a folder, and take it away again.

    Raises:
        OSError: if that cannot be done.
    """
    with TemporaryFile(dir=folder) as probe:
        probe.write(bytes(PROBE))
        probe.flush()
        os.fsync(probe.fileno())


def open_folder(folder: Path, name: str, data: str, *, overwrite: bool) -> None:
    """Make the folder of a report; raise rather than write over the report, or the finished runs, of other data.

    Args:
        folder: Where the report goes.
        name: Of the data.
        data: Their fingerprint.
        overwrite: Whether the report of other data may be replaced.

    Raises:
        ArgumentError: if it may not be; nothing is changed then.
    """
    check_folder(folder)
    earlier = _earlier_data(folder)
    if earlier is not None and not overwrite and earlier.get("fingerprint") != data:
        other = earlier.get("name")
        what = f"of other data, {other}" if other != name else f"of other data of the same name, {name}"
        raise ArgumentError(f"{folder} holds the report {what}; {WAY_OUT}, or replace it with --overwrite")
    from batchnorm.study.kept import FIGURES, NAME

    files = (NAME.fullmatch(file.name) for file in sorted((folder / RUNS).glob("*.json")))
    if not overwrite and any(match and match["data"] != data[:FIGURES] for match in files):
        raise ArgumentError(f"{folder / RUNS} holds runs of other data; {WAY_OUT}, or drop them with --overwrite")
    try:
        (folder / RUNS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError | ValueError) -> ArgumentError:
    reason = getattr(error, "strerror", None) or str(error)
    return ArgumentError(f"--out {str(folder)[:SAID]} cannot be written: {reason}; {WAY_OUT}")


def _earlier_data(folder: Path) -> dict[str, Any] | None:
    """Return what the report in a folder says about its data; None if there is no report."""
    with suppress(FileNotFoundError):
        text = (folder / "results.json").read_text(encoding="utf-8", errors="replace")
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            return dict(json.loads(text)["data"])
        return {"name": "which cannot be told, as results.json is damaged"}
    return None
