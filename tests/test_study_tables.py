"""Tables with one trait each that tables in the world have, and what the study makes of them."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from batchnorm.study.data import DataError
from batchnorm.study.sources import chosen_data
from batchnorm.study.tables import Profile, profile_text, table
from table_files import NUMBERS, ROWS, A, B, Y, column, columns, csv, dataset_of, profiled

FLOWERS = np.array(["iris", "rose", "tulip"])[np.arange(ROWS) % 3]


def shown(profile: Profile, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(profile_text(profile))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_plain_table(tmp_path: Path) -> None:
    data = dataset_of(profiled(tmp_path, csv()))
    assert np.array_equal(data.x, NUMBERS)
    assert np.array_equal(data.y, Y)
    assert (data.name, data.task, data.classes) == ("t", "classification", ("0", "1"))
    assert data.source == "60 rows of t, predicting y (classification)"
    assert data.notes == ("y: numbers, the target, 2 classes",)
    assert [c.kind for c in data.profile] == ["number"] * 3


def test_question_marks_are_missing(tmp_path: Path) -> None:
    cells = [*map(str, A[:-3]), "?", " ? ", "?"]
    profile = profiled(tmp_path, csv(columns(a=cells)))
    note = column(profile, "a").note
    assert note.startswith('read as missing: "?" (3); 3 missing filled with the median')
    assert np.array_equal(dataset_of(profile).x[-3:, 0], np.full(3, np.median(A[:-3])))
    assert column(profile, "a").gaps == 3


def test_rare_words_among_numbers_are_missing_and_named(tmp_path: Path) -> None:
    words = ["n/a", "NA", "-", "unknown", ".", "abc", ""]
    profile = profiled(tmp_path, csv(columns(a=[*words, *map(str, A[len(words) :])])))
    assert column(profile, "a").gaps == len(words)
    assert "and 1 other" in column(profile, "a").note
    assert '"abc" (1)' in column(profile, "a").note
    assert np.array_equal(dataset_of(profile).x[len(words) :, 0], A[len(words) :])


@pytest.mark.parametrize("target", ["-1", "3", "0"])  # the place, and what stands in the first row there
def test_a_table_without_header_is_noticed(tmp_path: Path, target: str) -> None:
    names = np.where(np.arange(ROWS) == 0, "0", np.where(Y, "u", "v"))
    names[1:6] = "0"
    profile = profiled(tmp_path, csv(columns(y=names), header=False), target)
    assert len(dataset_of(profile).x) == ROWS
    assert [c.name for c in profile.columns] == ["column 1", "column 2", "column 3"]
    assert "looks like data, not like names: it is read as a row" in profile.warnings[0]


def test_no_header_by_option_says_nothing(tmp_path: Path) -> None:
    profile = profiled(tmp_path, csv(header=False), "column 3", header=False)
    assert np.array_equal(dataset_of(profile).x, NUMBERS)
    assert profile.warnings == ()
    named = profiled(tmp_path, csv(header=False), "-1", header=True)
    assert len(dataset_of(named).x) == ROWS - 1


@pytest.mark.parametrize(
    "first",
    [
        "land,2019,2020,2021,y",  # years
        "land,0,1,2,y",  # numbered
        "land,v1,v2,v3,y",
    ],
)
def test_numbers_in_order_are_names(tmp_path: Path, first: str) -> None:
    rows = csv({"land": ["A", "B", "C"] * 20, "p": A, "q": B, "r": A + B, "y": Y}, header=False)
    profile = profiled(tmp_path, f"{first}\n{rows}")
    assert [c.name for c in profile.columns] == first.split(",")
    assert len(dataset_of(profile).x) == ROWS


def test_row_numbers_are_dropped_in_any_order(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(ROWS)
    by_class = csv({"": order, "a": A, "kind": FLOWERS[np.argsort(np.argsort(order))]})
    profile = profiled(tmp_path, by_class, "kind")
    assert column(profile, "column 1").note == "it numbers the rows"
    assert dataset_of(profile).x.shape == (ROWS, 1)
    counted = profiled(tmp_path, csv(columns(a=np.arange(7, 7 + ROWS))))
    assert column(counted, "a").note == "it numbers the rows"
    years = profiled(tmp_path, csv({"year": np.arange(1950, 1950 + ROWS), "a": A, "y": Y}))
    assert column(years, "year").kind == "number"


def test_a_column_that_is_the_answer_is_named(tmp_path: Path) -> None:
    profile = profiled(tmp_path, csv(columns(alive=np.where(Y, "yes", "no"))))
    assert profile.warnings[0].startswith("alive alone predicts the target perfectly")
    assert "(--drop alive)" in profile.warnings[0]
    assert dataset_of(profile).notes[0] == profile.warnings[0]
    without = profiled(tmp_path, csv(columns(alive=np.where(Y, "yes", "no"))), drop=["alive"])
    assert without.warnings == ()
    assert column(without, "alive").note == "as asked"


@pytest.mark.parametrize("factor", [1.0, 1e-30, 1e20])
def test_a_number_that_is_the_answer_is_named_at_any_scale(tmp_path: Path, factor: float) -> None:
    profile = profiled(tmp_path, csv({"fahrenheit": factor * (1.8 * A + 32), "b": B, "celsius": A}), "celsius")
    assert profile.warnings[0].startswith("fahrenheit alone predicts the target perfectly")


def test_rows_without_target_are_dropped(tmp_path: Path) -> None:
    species = ["", "?", *FLOWERS[2:]]
    profile = profiled(tmp_path, csv(columns(y=species)))
    assert profile.warnings[0] == '2 rows dropped: y is missing there or says "?"'
    data = dataset_of(profile)
    assert data.classes == ("iris", "rose", "tulip")
    assert np.array_equal(data.x, NUMBERS[2:])
    assert data.recipe is not None
    assert data.recipe.dropped_rows == 2


def test_semicolons_decimal_commas_byte_order_mark_and_umlauts(tmp_path: Path) -> None:
    commas = {name: [str(v).replace(".", ",") for v in values] for name, values in {"säure": A, "dichte": B}.items()}
    text = csv(commas | {"güte": np.where(Y, "gut", "schlecht")}, ";")
    profile = profiled(tmp_path, text.encode("utf-8-sig"), "güte")
    assert np.array_equal(dataset_of(profile).x, NUMBERS)
    assert dataset_of(profile).classes == ("gut", "schlecht")
    assert column(profile, "säure").parse == "decimal comma"


def test_an_identifier_is_dropped_and_a_price_stays(tmp_path: Path) -> None:
    numbers = np.random.default_rng(2).permutation(90_000)[:ROWS] + 10_000
    table_of_both = csv({"CustomerId": numbers, "price": numbers[::-1], "a": A, "y": Y})
    profile = profiled(tmp_path, table_of_both)
    assert column(profile, "CustomerId").note == "an identifier, different in nearly every row"
    assert column(profile, "price").kind == "number"


def test_dates_and_times_become_features(tmp_path: Path) -> None:
    days = np.datetime64("2024-01-01") + np.arange(ROWS) * 7 + np.arange(ROWS) % 5
    month_first = [f"{str(day)[5:7]}/{str(day)[8:]}/{str(day)[:4]}" for day in days]
    times = [f"{i % 24:02}:{i % 60:02}" for i in range(ROWS)]
    profile = profiled(tmp_path, csv(columns(day=month_first, time=times)))
    assert column(profile, "day").note == "month first: year, season, weekday"
    assert column(profile, "time").note == "times of day: hour"
    x = dataset_of(profile).x
    assert x.shape == (ROWS, 2 + 1 + 2 + 7 + 2)
    weekday = (days.astype(int) + 3) % 7
    assert np.array_equal(x[:, 5:12].argmax(1), weekday)
    assert np.array_equal(x[:, 5:12].sum(1), np.ones(ROWS))
    assert np.array_equal(x[:, 2], 1970 + days.astype(int) / 365.2425)


def test_thousands_percent_and_spaces(tmp_path: Path) -> None:
    income = np.round(A * 10_000 + 50_000)
    cells = {
        " income ": [f"{v:,.0f}" for v in income],
        "share": [f" {v}%" for v in B],
        "class": np.where(Y, " >50K", " <=50K "),
    }
    profile = profiled(tmp_path, csv(cells), "class")
    data = dataset_of(profile)
    assert np.array_equal(data.x, np.stack([income, B], axis=1))
    assert data.classes == ("<=50K", ">50K")
    assert column(profile, "income").note == "thousands separators"
    assert column(profile, "share").note == "percent"


def test_everything_is_gathered_before_anything_is_refused(tmp_path: Path) -> None:
    profile = profiled(tmp_path, csv(columns(a=["x"] * ROWS)), "speices", drop=["nothing", "b"])
    assert profile.problems == (
        "there is no column 'nothing'; the table has: a, b, y",
        "there is no column 'speices'; the table has: a, b, y",
    )
    assert column(profile, "a").note == "constant"
    with pytest.raises(DataError) as caught:
        table(tmp_path / "t.csv", "speices", drop=["nothing"])
    assert str(caught.value) == "; ".join(profile.problems)


def test_the_profile_is_shown(tmp_path: Path) -> None:
    cells = columns(a=["?", *A[1:]], alive=np.where(Y, "yes", "no"), **{"[red]": A})
    lines = shown(profiled(tmp_path, csv(cells))).splitlines()
    assert lines[0].split() == ["column", "read", "as", "missing", "what", "is", "done"]
    assert lines[1].split()[:3] == ["a", "numbers", "1"]
    assert any(line.startswith("[red]") for line in lines)
    assert any(line.startswith("! alive alone predicts") for line in lines)
    assert "✗ there is no column 'q'" in shown(profiled(tmp_path, csv(cells), "q"))
    data = dataset_of(profiled(tmp_path, csv(cells)))
    console = Console(file=io.StringIO(), width=200)
    console.print(profile_text(data))
    assert console.file.getvalue().splitlines() == lines  # pyright: ignore[reportAttributeAccessIssue]


def test_columns_that_are_alike_share_a_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pixels = {f"pixel{i}": rng.integers(0, 9, ROWS) for i in range(64)}
    text = shown(profiled(tmp_path, csv(pixels | {"y": Y})))
    assert "pixel0 … pixel63 (64 columns)" in text
    assert len(text.splitlines()) == 3


def test_options_of_the_command_reach_the_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(csv(header=False))
    data = chosen_data(tmp_path / "t.csv", "-1", None, None, drop=["1"], no_header=True)
    assert data is not None
    assert np.array_equal(data.x, NUMBERS[:, 1:])
    with pytest.raises(DataError, match="not both"):
        chosen_data(tmp_path / "t.csv", "a", None, "m:f")
    with pytest.raises(DataError, match="--target and --drop belong to a table: name its file too"):
        chosen_data(None, "a", None, None, drop=["b"])
