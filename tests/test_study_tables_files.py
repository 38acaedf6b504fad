"""Files of every format a table comes in, whole and damaged, and what is refused in one line."""

import bz2
import datetime
import decimal
import gzip
import io
import lzma
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchnorm.study.data import DataError
from batchnorm.study.tables import content, from_frame, inspect, table
from batchnorm.study.tables.recipe import encode, read
from table_files import NUMBERS, ROWS, A, B, Y, column, columns, csv, dataset_of, profiled

PLAIN = csv()
HEAD, BODY = PLAIN.split("\n", 1)


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, PLAIN)
    return buffer.getvalue()


SAME = {  # one table in many files, each with what is said about it
    "commas": (PLAIN, ()),
    "semicolons": (csv(separator=";"), ()),
    "tabs": (csv(separator="\t"), ()),
    "bars": (csv(separator="|"), ()),
    "blanks": (csv(separator="  "), ()),
    "spaces around": (csv(separator=" , "), ()),
    "CR LF": (PLAIN.replace("\n", "\r\n"), ()),
    "CR": (PLAIN.replace("\n", "\r"), ()),
    "byte order mark": (PLAIN.encode("utf-8-sig"), ()),
    "UTF-16": (PLAIN.encode("utf-16"), ("the file is UTF-16",)),
    "UTF-16 without mark": (PLAIN.encode("utf-16-le"), ("the file is UTF-16",)),
    "gzip": (gzip.compress(PLAIN.encode()), ()),
    "bz2": (bz2.compress(PLAIN.encode()), ()),
    "xz": (lzma.compress(PLAIN.encode()), ()),
    "zip": (zipped("t.csv"), ()),
    "lines above": (f"My table\n\nsource: me\n{PLAIN}", ("3 lines above the table skipped",)),
    "comments above": (f"# My table, with comma\n#\n{PLAIN}", ("2 lines above the table skipped",)),
    "blank lines": (f"{HEAD}\n\n{BODY}\n\n", ()),
    "no end of line": (PLAIN.rstrip("\n"), ()),
}


@pytest.mark.parametrize("case", SAME)
def test_one_table_in_many_files(tmp_path: Path, case: str) -> None:
    content, notes = SAME[case]
    profile = profiled(tmp_path, content)
    assert np.array_equal(dataset_of(profile).x, NUMBERS)
    assert np.array_equal(dataset_of(profile).y, Y)
    assert profile.warnings == notes


def with_last(row: str, last: Callable[[int], str]) -> str:
    return "\n".join([row, *(f"{line}{last(i)}" for i, line in enumerate(BODY.splitlines()))]) + "\n"


READ = {  # what else is read, with a column that is dropped and why
    "row names of R": (
        "\n".join([HEAD, *(f"car {i},{line}" for i, line in enumerate(BODY.splitlines()))]),
        "column 1", "a different text in nearly every row",
    ),
    "row numbers of R": (
        "\n".join([HEAD, *(f"{i},{line}" for i, line in enumerate(BODY.splitlines(), 1))]),
        "column 1", "it numbers the rows",
    ),
    "commas at the end of rows": (with_last(HEAD, lambda _: ","), "column 4", "every value is missing"),
    "commas at the end of all lines": (with_last(HEAD + ",", lambda _: ","), "column 4", "every value is missing"),
    "index of pandas": (with_last(f"{HEAD},Unnamed: 0", lambda i: f",{i * 7 % 59}"), "column 4", "it numbers the rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_rows_longer_than_the_header(tmp_path: Path, case: str) -> None:
    text, name, why = READ[case]
    profile = profiled(tmp_path, text)
    assert (column(profile, name).kind, column(profile, name).note) == ("dropped", why)
    assert np.array_equal(dataset_of(profile).x, NUMBERS)


@pytest.mark.parametrize(("encoding", "name"), [("cp1252", "Windows-1252"), ("utf-8", "")])
def test_encodings_that_are_not_named(tmp_path: Path, encoding: str, name: str) -> None:
    text = csv({"größe": A, "straße": B, "y": Y}).encode(encoding)
    profile = profiled(tmp_path, text)
    assert [c.name for c in profile.columns] == ["größe", "straße", "y"]
    assert profile.warnings == ((f"the file is not UTF-8: read as {name}",) if name else ())
    cut = profiled(tmp_path, csv({"größe": A, "straße": B, "y": Y}).encode() + b"\xc3")
    assert "1 byte that no UTF-8 has, read as �" in cut.warnings
    assert cut.columns[0].name == "größe"


REFUSED: dict[str, tuple[str | bytes | None, str]] = {
    "no file": (None, "cannot be read: No such file or directory"),
    "empty": (b"", "is empty"),
    "blank": ("\n\n  \n", "is empty"),
    "header only": (f"{HEAD}\n", "has columns but no rows"),
    "ragged": (f"{PLAIN}1,2,3,4\n", "cannot be read: line 62 has 4 cells, the lines above it 3; mend or remove it"),
    "bytes": (bytes(range(256)) * 9, "holds no text, but bytes that no text has"),
    "zero byte": (f"{PLAIN}1,\x002,1\n", "holds no text"),
    "pickle": (b"\x80\x04\x95" + bytes(50), "holds no text"),
    "UTF-16 that is none": (b"\xff\xfe\x00\xd8\x00\xd8", "holds no text"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "is a picture, not a table"),
    "PDF": (b"%PDF-1.7\n", "is a PDF document: save the table as CSV"),
    "old Excel": (b"\xd0\xcf\x11\xe0" + bytes(99), "is an old Excel file: save it as .xlsx or CSV"),
    "database": (b"SQLite format 3\x00", "is a database"),
    "JSON": ('[{"a": 1}]', "is JSON, which is not read: save the table as CSV"),
    "web page": ("<!DOCTYPE html><html>", "is a web page or XML, not a table"),
    "cut gzip": (gzip.compress(PLAIN.encode())[:-20], "is a damaged or truncated gzip archive"),
    "cut bz2": (bz2.compress(PLAIN.encode())[:-20], "is a damaged or truncated bz2 archive"),
    "cut xz": (lzma.compress(PLAIN.encode())[:-20], "is a damaged or truncated xz archive"),
    "cut zip": (zipped("t.csv")[:200], "is a damaged or truncated zip archive"),
    "gzip of nothing": (gzip.compress(b""), "is empty"),
    "two in a zip": (zipped("t.csv", "u.csv"), "is an archive of 2 files: unpack it and name one"),
    "empty zip": (zipped(), "is an archive of 0 files"),
    "tar": (gzip.compress(bytes(257) + b"ustar" + bytes(250)), "is an archive of several files (tar): unpack it"),
    "zip in a gzip": (gzip.compress(zipped("t.csv")), "is a compressed table that is no text: unpack it first"),
    "Parquet that is none": (b"PAR1" + bytes(99), "cannot be read: "),
    "Feather that is none": (b"ARROW1" + bytes(99), "cannot be read: "),
    "Excel that is none": (zipped("xl/workbook.xml"), "cannot be read: "),
    "OpenDocument": (zipped("content.xml", "mimetype"), "is an archive of 2 files"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_no_table_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    content, message = REFUSED[case]
    path = tmp_path / "t.csv"
    with pytest.raises(DataError) as caught:
        inspect(path, "y") if content is None else profiled(tmp_path, content)
    assert str(caught.value).startswith(f"{path} {message}")
    assert str(caught.value).isprintable()


PROBLEMS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown column": ({}, {"target": "Y"}, "there is no column 'Y'; did you mean 'y'? the table has: a, b, y"),
    "no target": ({}, {"target": None}, "name the column to predict with --target; the table has: a, b, y"),
    "place 0": ({}, {"target": "0"}, "there is no column 0: columns are counted from 1 to 3, or from -1, the last"),
    "place 9": ({}, {"target": "9"}, "there is no column 9"),
    "target dropped": ({}, {"drop": ["y"]}, "'y' cannot be the target and be dropped"),
    "all dropped": ({}, {"drop": ["a", 2]}, "no column is left to learn from: a: dropped, as asked; b: dropped, as"),
    "nothing to learn from": (
        {"a": [1] * ROWS, "b": [""] * ROWS},
        {},
        "is left to learn from: a: dropped, constant",
    ),
    "one class": ({"y": [1] * ROWS}, {}, "target 'y' has one class, '1': there is nothing to tell apart"),
    "no class": ({"y": [""] * ROWS}, {}, "target 'y' is missing in every row"),
    "a class a row": ({"y": [f"k{i}" for i in range(ROWS)]}, {}, "target 'y' has fewer than two classes with 5 rows"),
    "classes of numbers": ({"y": A}, {"task": "classification"}, "5 rows or more; --task regression predicts numbers"),
    "numbers of text": (
        {"y": ["u", "v"] * 30},
        {"task": "regression"},
        "holds text such as 'u': regression",
    ),
    "dates": (
        {"y": [f"2024-01-{1 + i % 28:02}" for i in range(ROWS)]},
        {},
        "target 'y' holds dates: add a",
    ),
    "times": (
        {"y": [f"{i % 24:02}:00" for i in range(ROWS)]},
        {},
        "target 'y' holds times: add a",
    ),
    "few rows": ({"y": [*"uuuuuvvvvv", *[""] * (ROWS - 10)]}, {}, "a study needs at least 20 rows, t has 10"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_tables_that_cannot_be_studied_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    changed, options, message = PROBLEMS[case]
    profile = profiled(tmp_path, csv(columns(**changed)), **{"target": "y"} | options)
    assert profile.dataset is None
    assert [problem for problem in profile.problems if message in problem]
    with pytest.raises(DataError) as caught:
        table(tmp_path / "t.csv", **{"target": "y"} | options)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_columns_of_one_name(tmp_path: Path) -> None:
    rows = csv({"y": Y, "a": A, "z": Y[::-1]}, header=False)
    twice = profiled(tmp_path, f"y,a,y\n{rows}")
    assert twice.problems == (
        "the table has several columns called 'y': rename them, or give --target the place of one, 1 and 3",
    )
    assert [c.name for c in twice.columns] == ["y", "a", "y (2)"]
    assert dataset_of(profiled(tmp_path, f"y,a,y\n{rows}", "3")).source.endswith("predicting y (2) (classification)")
    features = profiled(tmp_path, f"y,a, a\n{csv({'y': Y, 'a': A, 'b': B}, header=False)}")
    assert [c.name for c in features.columns] == ["y", "a", "a (2)"]
    assert 'names that come more than once: "a"; the later columns are a (2)' in features.warnings
    assert np.array_equal(dataset_of(features).x, NUMBERS)


def test_what_would_act_on_a_terminal_does_not_reach_it(tmp_path: Path) -> None:
    cells = {"a\x1b[31m": A, "b\u202e": B, "y": np.where(Y, "\x1b[2J", "z")}
    data = dataset_of(profiled(tmp_path, csv(cells)))
    assert [c.name for c in data.profile] == ["a�[31m", "b�", "y"]
    assert data.classes == ("�[2J", "z")
    assert all(note.isprintable() for note in data.notes)
    assert data.recipe is not None
    assert data.recipe.classes == ("\x1b[2J", "z")
    assert profiled(tmp_path, csv(cells), "a\x1b[31m").problems == ()


def test_a_quotation_mark_that_is_not_closed_loses_no_row(tmp_path: Path) -> None:
    profile = profiled(tmp_path, f'{PLAIN}"1,2,1\n{BODY}')
    assert len(dataset_of(profile).x) == 2 * ROWS + 1
    assert "a quotation mark is not closed: all of them are read as they stand" in profile.warnings
    lines = PLAIN.splitlines()
    lines[5], lines[9] = f'"x{lines[5]}', f'{lines[9]}"'
    swallowed = profiled(tmp_path, "\n".join([*lines, *lines[1:5]]))
    assert "1 cell with line breaks: is a quotation mark missing?" in swallowed.warnings


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_read_once_and_never_waited_for_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(csv(separator=";")))
    writer.start()
    profile = inspect(pipe, "y")
    writer.join()
    assert np.array_equal(dataset_of(profile).x, NUMBERS)
    monkeypatch.setattr(content, "PATIENCE", 0.01)
    with pytest.raises(DataError, match=r"pipe\.csv is a pipe that nothing writes to"):
        inspect(pipe, "y")


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="needs /dev/stdin")
def test_standard_input_and_other_places(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from batchnorm.study.tables import table; "
    code = program + "print(table(Path('/dev/stdin'), 'y').source)"
    done = subprocess.run([sys.executable, "-c", code], input=csv(separator=";"), capture_output=True, text=True)
    assert done.stdout == "60 rows of stdin, predicting y (classification)\n", done.stderr
    with pytest.raises(DataError, match="is a folder: name a file in it"):
        inspect(tmp_path)
    with pytest.raises(DataError, match="is a device, not a file"):
        inspect(Path("/dev/zero"))


def typed() -> pd.DataFrame:
    """Return a frame with a column of each kind that Parquet and Feather know."""
    hours = pd.date_range("2024-01-01", periods=ROWS, freq="7h")
    cells: dict[str, Any] = {
        "a": A,
        "lists": [[1, 2]] * ROWS,
        "bytes": [b"x"] * ROWS,
        "colour": pd.Categorical(["red", "green", "blue"] * 20),
        "moment": hours,
        "zoned": hours.tz_localize("Europe/Berlin", ambiguous=True, nonexistent="shift_forward"),
        "day": [datetime.date(2024, 1, 1 + i % 28) for i in range(ROWS)],
        "time": [datetime.time(i % 24, 5) for i in range(ROWS)],
        "decimal": [decimal.Decimal(i % 7) / 2 for i in range(ROWS)],
        "whole": pd.array([None if i % 5 == 0 else i % 9 for i in range(ROWS)], dtype="Int64"),
        "flag": [True, False] * 30,
        "span": pd.to_timedelta(np.arange(ROWS), unit="h"),
        "text": pd.array(["k", "m", None] * 20, dtype="string"),
        "y": Y,
    }
    return pd.DataFrame(cells)


KINDS = {
    "lists": "dropped", "bytes": "dropped", "span": "dropped", "colour": "categories", "flag": "categories",
    "text": "categories", "moment": "date", "zoned": "date", "day": "date", "time": "time", "a": "number",
    "decimal": "number", "whole": "number",
}  # fmt: skip


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "frame"])
def test_columns_with_types(tmp_path: Path, name: str) -> None:
    frame, path = typed(), tmp_path / name
    if name == "frame":
        data = from_frame(frame, "y")
    else:
        frame.to_parquet(path) if name == "t.parquet" else frame.to_feather(path)
        profile = profiled(tmp_path, path.read_bytes(), name=name)
        data = dataset_of(profile)
    assert {c.name: c.kind for c in data.profile if c.name != "y"} == KINDS
    notes = {c.name: c.note for c in data.profile}
    assert (notes["lists"], notes["bytes"], notes["span"]) == ("it holds lists", "it holds bytes", "it holds durations")
    assert np.array_equal(data.x[:, 0], A)
    assert np.array_equal(data.y, Y)


def test_structs_lists_and_indices_in_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": A, "s": [{"k": 1}] * ROWS, "y": Y})
    frame.iloc[np.random.default_rng(1).permutation(ROWS)].to_parquet(tmp_path / "t.parquet")
    profile = profiled(tmp_path, (tmp_path / "t.parquet").read_bytes(), name="t.parquet")
    assert column(profile, "s").note == "it holds structs"
    assert column(profile, "column 4").note == "it numbers the rows"
    refused = profiled(tmp_path, (tmp_path / "t.parquet").read_bytes(), "s", "t.parquet")
    assert refused.problems == ("target 's' cannot be predicted: it holds structs",)
    frame.set_index("a").to_parquet(tmp_path / "t.parquet")
    named = profiled(tmp_path, (tmp_path / "t.parquet").read_bytes(), name="t.parquet")
    assert column(named, "a").kind == "number"


def test_spreadsheets(tmp_path: Path) -> None:
    frame = typed()[["a", "moment", "text", "whole", "flag", "time", "y"]]
    path = tmp_path / "t.xlsx"
    with pd.ExcelWriter(path) as book:
        pd.DataFrame().to_excel(book, sheet_name="empty")
        frame.to_excel(book, sheet_name="data", startrow=3, startcol=1)
    profile = profiled(tmp_path, path.read_bytes(), name="t.xlsx")
    assert profile.warnings == ("sheet 'data' of 2 is read", "3 lines above the table skipped")
    kinds = {c.name: c.kind for c in profile.columns}
    assert kinds == {
        "column 1": "dropped", "column 2": "dropped", "a": "number", "moment": "date", "text": "categories",
        "whole": "number", "flag": "categories", "time": "time", "y": "number",
    }  # fmt: skip
    assert column(profile, "column 2").note == "it numbers the rows"
    assert np.array_equal(dataset_of(profile).x[:, 0], A)
    assert np.array_equal(dataset_of(profile).y, Y)


def test_data_frames() -> None:
    frame = pd.DataFrame(columns())
    data = from_frame(frame, "y", drop=["b"], name="mine")
    assert (data.name, data.x.shape) == ("mine", (ROWS, 1))
    assert np.array_equal(from_frame(frame.set_axis([0, 1, 2], axis=1), 2).x, NUMBERS)
    assert np.array_equal(from_frame(frame.set_index("a"), "y").x, NUMBERS)
    pairs = pd.MultiIndex.from_tuples([("a", "x"), ("a", "z"), ("y", "")])
    assert [c.name for c in from_frame(frame.set_axis(pairs, axis=1), "y").profile] == ["a x", "a z", "y"]
    assert data.recipe is not None
    assert np.array_equal(encode(data.recipe, frame)[0], data.x)
    with pytest.raises(ValueError, match="a data frame, which no file holds: encode the frame itself"):
        read(data.recipe)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ([1, 2], "the table must be a pandas DataFrame, got list"),
        (pd.DataFrame(), "the data frame has no columns"),
        (pd.DataFrame({"a": []}), "the data frame has no rows"),
        (pd.DataFrame({"a": A + 1j, "y": Y}), "no column is left to learn from: a: dropped, it holds complex numbers"),
        (pd.DataFrame(np.stack([Y, A, Y], axis=1), columns=list("yay")), "the table has several columns called 'y'"),
    ],
)
def test_data_frames_that_are_refused(frame: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        from_frame(frame, "y")
    assert message in str(caught.value)
