"""How the text of a file is laid out: its encoding, its separator, where its rows begin, and the columns' names."""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from batchnorm.study.data import DataError
from batchnorm.study.tables.numerals import MISSING_TEXTS, looks_numeric

HEAD_CHARACTERS = 500_000
HEAD_ROWS = 300
COMPARED = 100  # rows that a header is compared with
REGULAR = 0.8  # the share of lines that have to have as many cells as most of them
UNNAMED = re.compile(r"Unnamed: \d+(_level_\d+)?|__index_level_\d+__")  # what pandas and pyarrow write for no name

WIDE = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Layout:
    """How a text is laid out.

    Attributes:
        separator: Between the cells of a row: a character, or a regular expression for any white space.
        skipped: Lines above the header, or above the first row if there is no header.
        rows: The cells of the first rows, the header among them.
        width: How many cells most rows have.
    """

    separator: str
    skipped: int
    rows: Rows
    width: int


@dataclass(frozen=True)
class Names:
    """What the columns are called.

    Attributes:
        names: One a column, unique, without outer spaces or unprintable characters.
        raw: As they are in the file; the first row's cells if that is no header.
        unnamed: Numbers of the columns that the file has no name for.
        repeated: Names that the file has more than once.
    """

    names: tuple[str, ...]
    raw: tuple[str, ...]
    unnamed: frozenset[int]
    repeated: frozenset[str]


def printable(text: str, most: int = 60) -> str:
    r"""Return a text without what would act on a terminal, and no longer than a line has room for.

    >>> printable("a\x1b[31mb")
    'a�[31mb'
    """
    clean = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text).strip()
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def plural(count: int, noun: str) -> str:
    """Return a number with its noun.

    >>> plural(1, "row"), plural(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def encoding(plain: bytes) -> tuple[str, str]:
    """Return the encoding of a text and, where that is not plain UTF-8, a note that says so.

    Raises:
        DataError: if the bytes are no text.
    """
    if plain.startswith(codecs.BOM_UTF8):
        return "utf-8-sig", ""
    head = plain[:1000]
    wide = next((kind for bom, kind in WIDE.items() if plain.startswith(bom)), "")
    if not wide and head.count(0) > len(head) / 4:  # every second byte of Latin text
        wide = "utf-16-le" if plain[1:1000:2].count(0) > head.count(0) / 2 else "utf-16-be"
    if wide and _decodes(plain, wide):
        return wide, "the file is UTF-16"
    if wide or 0 in plain or sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in head) > len(head) / 20:
        raise DataError("holds no text, but bytes that no text has: save the table as CSV, in UTF-8")
    if _decodes(plain, "utf-8"):
        return "utf-8", ""
    text = plain.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    if sum(not c.isascii() for c in text) > 2 * wrong:
        return "utf-8", f"{plural(wrong, 'byte')} that no UTF-8 has, read as �"
    kind = "cp1252" if _decodes(plain, "cp1252") else "latin-1"
    return kind, f"the file is not UTF-8: read as {'Windows-1252' if kind == 'cp1252' else 'Latin-1'}"


def _decodes(plain: bytes, kind: str) -> bool:
    try:
        plain.decode(kind)
    except UnicodeDecodeError:
        return False
    return True


def layout(plain: bytes, kind: str) -> Layout:
    """Return how a text is laid out, from its first lines.

    Raises:
        DataError: if it is a page or an object rather than a table.
    """
    text = codecs.getincrementaldecoder(kind)("replace").decode(plain[: 4 * HEAD_CHARACTERS])[:HEAD_CHARACTERS]
    start = text.lstrip()[:200].lower()
    if start.startswith(("<!doctype", "<html", "<?xml")):
        raise DataError("is a web page or XML, not a table: save the table as CSV")
    if start.startswith(("{", "[{", "[[")):
        raise DataError("is JSON, which is not read: save the table as CSV")
    lines = text.splitlines(keepends=True)
    lines = lines[:-1] if len(text) == HEAD_CHARACTERS else lines
    layouts = [regular for mark in ("\t", ";", "|", ",") if (regular := _by(mark, lines)) is not None]
    spaced = None if layouts else _by(r"\s+", lines)
    single = Layout(",", 0, [[line.strip()] for line in lines[:HEAD_ROWS] if line.strip()], 1)
    return max(layouts, key=_plausible) if layouts else spaced or single


def _plausible(layout: Layout) -> tuple[bool, float]:
    """Order layouts: at best all rows have one width, the first too. Of equals `max` takes the first."""
    widths = [len(row) for row in layout.rows]
    regular = sum(width == layout.width for width in widths) / len(widths)
    return layout.skipped == 0, round(regular, 1)


def _by(separator: str, lines: Sequence[str]) -> Layout | None:
    """Return the layout by one separator, None if most lines do not have two cells or more in the same number."""
    rows, ends = _rows(separator, lines)
    counts = Counter(len(row) for row in rows)
    if not counts:
        return None
    width, regular = counts.most_common(1)[0]
    if width < 2 or regular < REGULAR * (len(rows) - 5):
        return None
    first = next(i for i, row in enumerate(rows) if _begins(row, width))
    return Layout(separator, ends[first - 1] if first else 0, rows[first:], width)


def _begins(row: Sequence[str], width: int) -> bool:
    """Return whether the table may begin with a row: no title, which has one cell, and no comment."""
    comment = row[0].startswith("#") and len(row) != width
    return len(row) >= max(2, width - 1) and sum(map(bool, row)) > 1 and not comment


def _rows(separator: str, lines: Sequence[str]) -> tuple[list[list[str]], list[int]]:
    """Return the rows that are not blank, and the number of the line that each ends in."""
    rows: list[list[str]] = []
    ends: list[int] = []
    if separator == r"\s+":
        pairs = [(line.split(), number) for number, line in enumerate(lines, 1)]
        pairs = [(row, number) for row, number in pairs if row][:HEAD_ROWS]
        return [row for row, _ in pairs], [number for _, number in pairs]
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row) or len(row) > 1:
                rows.append([cell.strip() for cell in row])
                ends.append(reader.line_num)
            if len(rows) == HEAD_ROWS:
                break
    except csv.Error:
        return [], []
    return rows, ends


def has_header(first: Sequence[str], rows: Rows) -> bool:
    """Return whether a first row is a header: whether it is unlike the cells below it.

    A number above numbers, or a text that comes again below, speaks for data; a text above numbers, or one that does
    not come again among repeated texts, for a header. Numbers in order (0, 1, 2 or 2019, 2020, 2021) are names.
    """
    data = header = 0
    numeric: list[str] = []
    for cell, *column in zip(first, *rows[:COMPARED], strict=False):
        present = [text for text in column if text.lower() not in MISSING_TEXTS]
        if not present or cell.lower() in MISSING_TEXTS:
            continue
        if sum(map(looks_numeric, present)) >= REGULAR * len(present):
            if looks_numeric(cell):
                numeric.append(cell)
            else:
                header += 1
        elif cell in present:
            data += 1
        elif len(set(present)) < 0.9 * len(present):
            header += 1
    if _names_by_number(numeric):
        header += len(numeric)
    else:
        data += len(numeric)
    return header >= data


def _names_by_number(cells: Sequence[str]) -> bool:
    """Return whether numbers in a first row look like names: years, steps of one size, or six and more in order."""
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        return False
    steps = [round(b - a, 9) for a, b in pairwise(values)]
    if not steps or not (min(steps) > 0 or max(steps) < 0):
        return False
    years = all(value.is_integer() and 1900 <= value <= 2100 for value in values)
    return years or len(values) > 5 or (len(values) > 2 and len(set(steps)) == 1)


def names(raw: Sequence[str], numbered: bool = False) -> Names:
    """Return the columns' names from the cells of a header; "column 1" and so on where there is none.

    Args:
        raw: The cells of the header, or of the first row.
        numbered: Number all columns: the first row is no header.
    """
    clean = ["" if UNNAMED.fullmatch(cell.strip()) else printable(cell, 200) for cell in raw]
    counts = Counter(name for name in clean if name)
    unique: dict[str, None] = {}
    for i, name in enumerate(clean, 1):
        base = f"column {i}" if numbered or not name else name
        candidate, copy = base, 1
        while candidate in unique or (candidate != name and candidate in counts and not numbered):
            copy += 1
            candidate = f"{base} ({copy})"
        unique[candidate] = None
    empty = frozenset(i for i, name in enumerate(clean) if not name and not numbered)
    repeated = frozenset(name for name, count in counts.items() if count > 1 and not numbered)
    return Names(tuple(unique), tuple(cell.strip() for cell in raw), empty, repeated)
