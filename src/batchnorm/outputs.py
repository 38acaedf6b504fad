"""What leaves the package: data fit for JSON, messages fit for a line, and files that are written whole."""

import math
import os
import re
import stat
import sysconfig
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from batchnorm.errors import ArgumentError

CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # sequences with parameters, with text
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
NAME_KEPT = 20  # characters of a file's name that the folder of its draft has
SAID = 300  # characters of a message
STANDARD = sysconfig.get_path("stdlib") + os.sep
OWN = f"{Path(__file__).parent}{os.sep}"


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


def told(error: BaseException) -> str:
    """Return an exception in a line: its kind, its message, and where in the user's own code it was raised.

    >>> told(KeyError("x")), told(SystemExit(0))
    ("KeyError: 'x'", 'it called sys.exit(0); let it raise an exception, or return')
    """
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r}); let it raise an exception, or return{where}"
    said = ""
    with suppress(Exception):  # of an exception that cannot even be shown
        lines = printable(str(error)).strip().splitlines()
        if any("Traceback (most recent call last)" in line for line in lines):  # of another process
            lines = [lines[0], lines[-1]]
        said = " ".join(" ".join(lines).split())[:SAID]
    return f"{type(error).__name__}{said and f': {said}'}{where}"


def _is_own(file: str) -> bool:
    installed = "site-packages" in file or "dist-packages" in file
    return not installed and not file.startswith(("<", STANDARD, OWN))


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
        raise ArgumentError(f"`{option}` must end in {named}, got {_short(path)}")
    try:
        if not path.parent.is_dir():
            raise ArgumentError(f"`{option}` must lie in a folder that exists, got {_short(path)}")
        if path.exists():
            if not stat.S_ISREG(path.stat().st_mode):
                kind = "folder" if path.is_dir() else "pipe or a device"
                raise ArgumentError(f"`{option}` must be a file, got a {kind}, {_short(path)}; name another")
            path.open("ab").close()
        TemporaryFile(dir=Path(os.path.realpath(path)).parent).close()
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ArgumentError(f"`{option}` must be a file that can be written, got {_short(path)} ({reason})") from None


def _short(path: Path) -> str:
    return str(path)[:SAID]


@contextmanager
def whole(path: Path) -> Generator[Path]:
    """Write a file whole or not at all: yield a path of the same name to write to, in a folder beside it.

    What lies in that folder then, the file and others that belong to it, goes onto the disk and is renamed into place,
    with the permissions that it would have had if it had been written there. Whatever interrupts it, a full disk or
    the end of the process, leaves the earlier file as it was. A link stays one.

    Raises:
        OSError: if it cannot be written.
    """
    place = Path(os.path.realpath(path))
    beside = f".{place.name[:NAME_KEPT]}."  # a rename stays on one disk
    with TemporaryDirectory(dir=place.parent, prefix=beside, ignore_cleanup_errors=True) as folder:
        draft = Path(folder, path.name)  # whose ending says what is written, not that of what a link leads to
        draft.touch()
        usual = stat.S_IMODE(draft.stat().st_mode)
        yield draft
        for file in sorted(draft.parent.iterdir(), key=draft.__eq__):  # itself last: the others are there when it is
            _settle(file, place if file == draft else place.with_name(file.name), usual)


def _settle(draft: Path, place: Path, mode: int) -> None:
    """Give a draft the permissions and the owner of the file whose place it takes, or the usual ones."""
    with suppress(FileNotFoundError):
        before = place.stat()
        mode = stat.S_IMODE(before.st_mode)
        if hasattr(os, "chown"):
            with suppress(PermissionError):
                os.chown(draft, before.st_uid, before.st_gid)
    with draft.open("r+b") as file:
        os.fsync(file.fileno())
    draft.chmod(mode)
    draft.replace(place)


@contextmanager
def written(option: str, path: Path) -> Generator[Path]:
    """Write a file whole or not at all, as `whole` does, for the user who has named it.

    Raises:
        ArgumentError: in one line, if it cannot be written.
    """
    try:
        with whole(path) as draft:
            yield draft
    except ArgumentError:
        raise
    except Exception as error:  # of a disk, an exporter
        reason = told(causes(error)[-1])  # an exporter tells much else beside it
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror}; name another file, {option}"
        raise ArgumentError(f"{_short(path)} cannot be written: {reason}") from error


def causes(error: BaseException, *, handled: bool = False) -> list[BaseException]:
    """Return an error and what has caused it, the first cause last; `handled`: or was being handled when it came up."""
    seen = [error]
    while (cause := seen[-1].__cause__ or (seen[-1].__context__ if handled else None)) and cause not in seen:
        seen.append(cause)
    return seen


def write_whole(path: Path, text: str) -> None:
    """Write a text whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    # Half a character, which a file's name may bring, is written as the escape that JSON has for it.
    with whole(path) as draft, draft.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
