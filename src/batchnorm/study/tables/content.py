"""What a file holds: its bytes, read once, and what kind of file they are."""

import bz2
import gzip
import importlib
import io
import lzma
import os
import select
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from batchnorm.study.data import DataError

Format = Literal["text", "excel", "parquet", "feather"]

MOST_BYTES = 4 * 2**30
PATIENCE = 5.0  # seconds to wait for somebody to write to a pipe
SILENCE = 60.0  # seconds to wait for more from somebody who does

COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # an empty one
    b"\x28\xb5\x2f\xfd": "zstd",
}
FORMATS: dict[bytes, Format] = {b"PAR1": "parquet", b"ARROW1": "feather", b"FEA1": "feather"}
OTHERS = {
    b"\xd0\xcf\x11\xe0": "an old Excel file: save it as .xlsx or CSV",
    b"%PDF": "a PDF document: save the table as CSV",
    b"\x89PNG": "a picture, not a table",
    b"\xff\xd8\xff": "a picture, not a table",
    b"GIF8": "a picture, not a table",
    b"\x89HDF": "an HDF5 file: save the table as CSV or Parquet",
    b"SQLite format 3": "a database: save the table as CSV or Parquet",
    b"\x93NUMPY": "a NumPy array: return it from a function and name that with --data",
    b"\x7fELF": "a program, not a table",
}


@dataclass(frozen=True)
class Content:
    """The bytes of a file.

    Attributes:
        raw: As they are in the file.
        plain: The same, decompressed.
        compression: How they were compressed, as pandas calls it; "" if they were not.
        format: What `plain` holds.
    """

    raw: bytes
    plain: bytes
    compression: str
    format: Format


def content(path: Path) -> Content:
    """Read a file once, which may be a pipe.

    Raises:
        DataError: if it cannot be read or holds no table; the message is the end of a sentence on the file.
    """
    try:
        raw = _bytes(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from None
    if not raw.strip():
        raise DataError("is empty")
    compression = next((name for magic, name in COMPRESSIONS.items() if raw.startswith(magic)), "")
    if compression == "zip" and (office := _office_format(raw)):
        if office == "excel":
            return Content(raw, raw, "", "excel")
        raise DataError(f"is {office}: save it as .xlsx or CSV")
    try:
        plain = _decompressed(raw, compression) if compression else raw
    except DataError:
        raise
    except Exception as error:  # a damaged archive raises what its own decoder raises: half a dozen classes
        raise DataError(f"is a damaged or truncated {compression} archive: {error}") from None
    return Content(raw, plain, compression, _format_of(plain, compression))


def _format_of(plain: bytes, compression: str) -> Format:
    for magic, words in OTHERS.items():
        if plain.startswith(magic):
            raise DataError(f"is {words}")
    if plain[257:262] == b"ustar":
        raise DataError("is an archive of several files (tar): unpack it and name one")
    if not plain.strip():
        raise DataError("is empty")
    kinds: list[Format] = [kind for magic, kind in FORMATS.items() if plain.startswith(magic)]
    kind = kinds[0] if kinds else "text"
    if compression and (kind != "text" or plain.startswith(b"PK\x03\x04")):
        raise DataError("is a compressed table that is no text: unpack it first")
    return kind


def _bytes(path: Path) -> bytes:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise DataError("is a folder: name a file in it")
    if stat.S_ISFIFO(status.st_mode):
        return _piped(path)
    if not stat.S_ISREG(status.st_mode):
        raise DataError("is a device, not a file; a table may come through a pipe")
    if status.st_size > MOST_BYTES:
        raise DataError("is larger than 4 GiB, more than a study takes: write a part of the rows to a file")
    return path.read_bytes()


def _piped(path: Path) -> bytes:
    """Read a pipe to its end; opening or reading one that nobody writes to must not block for ever."""
    chunks: list[bytes] = []
    written = False
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as pipe:
        while True:
            ready = select.select([pipe], [], [], SILENCE if written else PATIENCE)[0]
            chunk = pipe.read(2**20)  # None: nothing has come yet; b"": nobody has it open for writing
            if chunk == b"" and not ready:
                raise DataError("is a pipe that nothing writes to")
            if chunk == b"":
                return b"".join(chunks)
            if chunk is None and written and not ready:
                raise DataError(
                    f"is a pipe through which nothing came for {SILENCE:.0f} seconds: write the table to a file"
                )
            written = True
            chunks += [chunk] if chunk else []
            if len(chunks) > MOST_BYTES // 2**16:  # no more than 64 KiB come at once
                raise DataError("does not end within 4 GiB: write a part of the rows")


def _office_format(raw: bytes) -> str:
    """Return "excel" for a workbook, what else an office file is in words, "" for any other archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = archive.namelist()
            if "xl/workbook.xml" in names:
                return "excel"
            if "xl/workbook.bin" in names:
                return "a binary Excel file"
            if "mimetype" in names and b"opendocument" in archive.read("mimetype"):
                return "an OpenDocument file"
            return "a Word document" if "word/document.xml" in names else ""
    except Exception:  # damaged: reading it as an archive says so
        return ""


def _decompressed(raw: bytes, compression: str) -> bytes:
    if compression == "zip":
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if len(archive.namelist()) != 1:
                raise DataError(f"is an archive of {len(archive.namelist())} files: unpack it and name one")
            return archive.read(archive.namelist()[0])
    if compression == "zstd":
        try:
            zstandard = importlib.import_module("zstandard")
        except ImportError:
            raise DataError("is compressed by zstd, which needs the package zstandard: install or unpack it") from None
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw)).read()
    return {"gzip": gzip.decompress, "bz2": bz2.decompress, "xz": lzma.decompress}[compression](raw)
