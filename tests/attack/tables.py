"""Tables: damaged, empty, enormous values, hostile names, in every format; with targets that are there or are not."""

import bz2
import gzip
import io
import lzma
import random
import zipfile
from collections.abc import Iterator

import pandas as pd

from attack.attempt import BAD_INPUT, FINE, Attempt, may

ROWS = 60


def _plain(names: str = "a,b,y", cell: str = "", rows: int = ROWS, end: str = "\n") -> bytes:
    drawn = random.Random(0)
    lines = [names]
    for i in range(rows):
        a, b = drawn.gauss(0, 1), drawn.gauss(0, 1)
        lines.append(f"{cell if cell and i == 7 else f'{a:.4f}'},{b:.4f},{int(a > 0)}")
    return (end.join(lines) + end).encode("utf-8", "surrogatepass")


def _typed(kind: str, frame: pd.DataFrame) -> bytes:
    made = io.BytesIO()
    getattr(frame, f"to_{kind}")(made)
    return made.getvalue()


def _frame() -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(_plain()))


def _zip(names: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return made.getvalue()


def tables() -> dict[str, bytes]:
    """Return tables by the name of their file."""
    plain, frame = _plain(), _frame()
    lists = frame.assign(l=[[1, 2]] * len(frame), s=[{"k": 1}] * len(frame), b=[b"x"] * len(frame))
    return {
        "plain.csv": plain,
        "windows.csv": _plain(end="\r\n"),
        "semicolon.csv": plain.replace(b",", b";"),
        "tab.tsv": plain.replace(b",", b"\t"),
        "bom.csv": b"\xef\xbb\xbf" + plain,
        "utf16.csv": plain.decode().encode("utf-16"),
        "latin.csv": _plain("größe,b,y").decode().encode("latin-1"),
        "acts.csv": _plain("\x1b]0;owned\x07a,\x1b[31mb,y"),
        "markup.csv": _plain("[/red]a,[bold]b,y"),
        "bidirectional.csv": _plain("a\u202eb,\u2066b,y"),
        "c1.csv": _plain("a\x9b31m,b\x85,y"),
        "doubled.csv": _plain("y,a,y"),
        "unnamed.csv": _plain(",,y"),
        "long names.csv": _plain("a" * 5000 + "," + "b" * 5000 + ",y"),
        "nul.csv": plain.replace(b"\n", b"\x00\n", 3),
        "nan.csv": _plain(cell="nan"),
        "inf.csv": _plain(cell="inf"),
        "huge.csv": _plain(cell="1e300"),
        "tiny.csv": _plain(cell="1e-320"),
        "integers.csv": _plain(cell="9" * 400),
        "formula.csv": _plain(cell='=cmd|"/c calc"!A1'),
        "quote.csv": _plain(cell='"'),
        "acting cell.csv": _plain(cell="\x1b[2J"),
        "one class.csv": b"a,b,y\n" + b"1,2,x\n" * ROWS,
        "constant.csv": b"a,b,y\n" + b"1,2,0\n1,2,1\n" * ROWS,
        "few.csv": _plain(rows=3),
        "header only.csv": b"a,b,y\n",
        "one column.csv": b"y\n" + b"1\n0\n" * ROWS,
        "empty.csv": b"",
        "blank.csv": b"\n\n  \n",
        "ragged.csv": plain + b"1,2,3,4,5\n",
        "one line.csv": b"a,b,y",
        "junk.csv": random.Random(1).randbytes(5000),
        "zeros.csv": bytes(5000),
        "deep.json": b"[" * 5000,
        "picture.csv": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "regression.csv": "\n".join(["a,y", *(f"{i},{i * 1.5}" for i in range(ROWS))]).encode(),
        "large targets.csv": "\n".join(["a,y", *(f"{i},{1e20 * i}" for i in range(ROWS))]).encode(),
        "offset targets.csv": "\n".join(["a,y", *(f"{i},{1e9 + i % 7}" for i in range(ROWS))]).encode(),
        "dates.csv": "\n".join(["d,y", *(f"2024-01-{i % 28 + 1:02},{i % 2}" for i in range(ROWS))]).encode(),
        "words.csv": "\n".join(["w,y", *(f"word {i},{i % 2}" for i in range(ROWS))]).encode(),
        "good.csv.gz": gzip.compress(plain),
        "cut.csv.gz": gzip.compress(plain)[:-30],
        "cut.csv.bz2": bz2.compress(plain)[:-30],
        "cut.csv.xz": lzma.compress(plain)[:-30],
        "bad.csv.zst": b"\x28\xb5\x2f\xfd" + bytes(30),
        "good.zip": _zip({"t.csv": plain}),
        "two.zip": _zip({"t.csv": plain, "u.csv": plain}),
        "none.zip": _zip({}),
        "cut.zip": _zip({"t.csv": plain})[:-40],
        "good.parquet": _typed("parquet", frame),
        "cut.parquet": _typed("parquet", frame)[:-50],
        "lists.parquet": _typed("parquet", lists),
        "categories.parquet": _typed("parquet", frame.assign(c=pd.Categorical(["u", "v"] * (len(frame) // 2)))),
        "good.feather": _typed("feather", frame),
        "good.xlsx": _typed("excel", frame),
        "cut.xlsx": _typed("excel", frame)[:-200],
    }


TARGETS = (("y", True), ("nowhere", False), ("\x1b[31mred\x1b]0;t\x07[/red]", False), (None, False), ("-1", False))
NO_TABLES = ("folder/", "pipe.csv|", "nowhere.csv", "dangling.csv@", "\udcff.csv", "a" * 300 + ".csv", "/dev/null", "")
FINE_ONES = ("plain.csv", "windows.csv", "semicolon.csv", "tab.tsv", "bom.csv", "good.csv.gz", "good.parquet")


def attempts() -> Iterator[Attempt]:
    """Yield each table with each target, as a study checks it and as a batch size is asked for."""
    for name, content in tables().items():
        for target, there in TARGETS:
            named = ("--target", target) if target is not None else ()
            fine = may(FINE) if name in FINE_ONES and there else may(FINE, BAD_INPUT)
            statuses = fine if there or target == "-1" else may(BAD_INPUT)
            if target is None:
                statuses = may(FINE, BAD_INPUT)
            files = {name: content}
            as_json = ["--json"] * ((len(name) + len(target or "")) % 2)
            yield Attempt("tables", ("study", name, "--check", *named, *as_json), statuses, files)
            if target in ("y", None):
                asked = ("batch-size", name, *named, "--budget", "0.3", "--json")
                yield Attempt("tables", asked, statuses, files)
    for name in NO_TABLES:
        files = {name: b"nowhere"} if name.endswith(("/", "|", "@")) else {}
        given = name.rstrip("/|@") or ("" if not name else "/")
        for command in (("study", given, "--check"), ("batch-size", given, "--budget", "0.3")):
            yield Attempt("tables", (*command, "--target", "y"), may(BAD_INPUT), files, seconds=30)
