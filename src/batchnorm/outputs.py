"""What leaves the package: data fit for JSON, and files that can be written."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from batchnorm.errors import ArgumentError


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
