"""What leaves the package: data fit for JSON, and files that can be written."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from batchnorm.errors import ArgumentError

CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # sequences with parameters, with text
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
NAME_KEPT = 100  # characters of a file's name that its draft has, of the 255 bytes that a name may have


def plain(value: Any) -> Any:
    """Return plain data fit for JSON: tuples as lists, NaN and infinities as None.

    >>> plain({"sizes": (1, 2), "loss": math.inf})
    {'sizes': [1, 2], 'loss': None}
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def printable(text: str) -> str:
    r"""Return a text without what would act on a terminal: escape sequences, control and bidirectional characters.

    >>> printable("\x1b[31mred\x1b[0m \x1b]0;title\x07and\x00 plain\nnext line")
    'red and plain\nnext line'
    """
    return CONTROLS.sub("", text)


def check_file(option: str, path: Path, endings: Sequence[str] | None = None) -> None:
    """Refuse a file that could not be written, before the work is done.

    Raises:
        ArgumentError: if its ending is none of these, its folder is not there, or it cannot be written.

    >>> check_file("--out", Path("picture.gif"), (".png", ".svg"))
    Traceback (most recent call last):
    batchnorm.errors.ArgumentError: `--out` must end in .png or .svg, got picture.gif
    """
    if endings is not None and path.suffix.lower() not in endings:
        named = " or ".join(part for part in (", ".join(endings[:-1]), endings[-1]) if part)
        raise ArgumentError(f"`{option}` must end in {named}, got {path}")
    if not path.parent.is_dir():
        raise ArgumentError(f"`{option}` must lie in a folder that exists, got {path}")
    try:
        if path.exists():
            path.open("ab").close()
        else:
            TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ArgumentError(f"`{option}` must be a file that can be written, got {path} ({error.strerror})") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary file beside it, onto the disk, then in its place.

    Whatever interrupts it, a full disk or the end of the process, leaves the earlier file as it was.

    Raises:
        OSError: if it cannot be written.
    """
    draft = path.with_name(f".{path.name[:NAME_KEPT]}.{os.getpid()}")  # beside it: a rename stays on one disk
    try:
        # Half a character, which a file's name may bring, is written as the escape that JSON has for it.
        with draft.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
