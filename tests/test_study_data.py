"""What a study accepts, what it makes of it, and what it refuses in one line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchnorm.study import data, goals, shipped
from batchnorm.study.claims import all_claims, chosen_claims
from batchnorm.study.sources import chosen_data
from batchnorm.study.tables import table

ROWS = 60


def write(folder: Path, columns: dict[str, object], name: str = "t.csv") -> Path:
    path = folder / name
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.fixture
def columns() -> dict[str, object]:
    rng = np.random.default_rng(0)
    return {
        "size": rng.normal(size=ROWS),
        "colour": rng.choice(["red", "green"], ROWS),
        "sold": rng.integers(0, 2, ROWS),
        "price": rng.normal(size=ROWS),
    }


def test_types_are_inferred_and_noted(tmp_path: Path, columns: dict[str, object]) -> None:
    gaps = pd.Series(columns["size"]).copy()
    gaps[[3, 5]] = np.nan
    columns |= {"size": gaps, "flat": 7, "void": np.nan, "id": [f"row {i}" for i in range(ROWS)]}
    found = table(write(tmp_path, columns), "sold")
    notes = "; ".join(found.notes)
    assert found.task == "classification"
    assert found.classes == ("0", "1")
    assert found.x.shape == (ROWS, 1 + 2 + 1)  # size, two colours, price
    for words in ("size: numbers, 2 missing", "colour: 2 categories", "flat: dropped, constant"):
        assert words in notes
    assert "void: dropped, every value is missing" in notes
    assert "id: dropped, a different text in every row" in notes
    assert found.x[3, 0] == pytest.approx(np.median(gaps.dropna()))


def test_numbers_with_many_values_are_a_regression(tmp_path: Path, columns: dict[str, object]) -> None:
    found = table(write(tmp_path, columns), "price")
    assert (found.task, found.outputs, found.score_name) == ("regression", 1, "R²")


def test_semicolons_parquet_and_spaces_in_names(tmp_path: Path, columns: dict[str, object]) -> None:
    frame = pd.DataFrame(columns)
    frame.rename(columns={"sold": " sold "}).to_csv(tmp_path / "semi.csv", sep=";", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    comma = table(write(tmp_path, columns), "sold")
    for path in ("semi.csv", "t.parquet"):
        assert np.allclose(table(tmp_path / path, "sold").x, comma.x)


def test_few_rows_and_rare_classes_are_noted(tmp_path: Path, columns: dict[str, object]) -> None:
    few = {name: list(np.asarray(values)[:30]) for name, values in columns.items()}
    few["sold"][0] = 9
    found = table(write(tmp_path, few), "sold")
    assert len(found.x) == 29
    assert "1 rows dropped, of classes with fewer than 5 rows" in found.notes
    assert "only 29 rows: expect wide intervals" in found.notes


BAD_COLUMNS = {
    "unknown column": ({}, "no_such", "there is no column 'no_such'; the table has: size, colour, sold, price"),
    "no target": ({}, None, "name the column to predict with --target; the table has: size, colour"),
    "one class": ({"sold": 1}, "sold", "target 'sold' has one class, '1'"),
    "stray text": (
        {"size": [*["1.5"] * (ROWS - 1), "abc"]},
        "sold",
        f"column 'size' holds numbers, but data row {ROWS} says 'abc'",
    ),
    "gap in target": (
        {"sold": [np.nan] + [1] * 30 + [0] * (ROWS - 31)},
        "sold",
        "target 'sold' is missing in 1 of 60 rows",
    ),
    "nothing left": ({"size": 1, "colour": "a", "price": 2}, "sold", "no column is left to learn from: size: dropped"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_bad_tables_are_refused_in_one_line(tmp_path: Path, columns: dict[str, object], case: str) -> None:
    changed, target, message = BAD_COLUMNS[case]
    with pytest.raises(data.DataError) as caught:
        table(write(tmp_path, columns | changed), target)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a,b\n", "has columns but no rows"),
        (b"\xff\xfe\x00\x01", "cannot be read"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(data.DataError) as caught:
        table(path, "a")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_regression_on_text_and_too_few_rows(tmp_path: Path, columns: dict[str, object]) -> None:
    with pytest.raises(data.DataError, match=r"holds text such as '(red|green)': regression needs numbers"):
        table(write(tmp_path, columns), "colour", "regression")
    few = {name: list(np.asarray(values)[:12]) for name, values in columns.items()}
    with pytest.raises(data.DataError, match="at least 20 rows, t has 12"):
        table(write(tmp_path, few | {"sold": [0, 1] * 6}), "sold")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (3, "must return a pair (x, y) of arrays, got int"),
        ((np.zeros(30), np.zeros(30)), "numeric x of rank ≥ 2, got float64 of shape (30,)"),
        ((np.zeros((30, 2)), np.zeros((30, 2))), "numeric y of rank 1"),
        ((np.zeros((30, 2)), np.zeros(29)), "got 30 and 29 rows"),
        ((np.full((30, 2), np.nan), np.arange(30.0)), "holds NaN or infinite values"),
        ((np.zeros((30, 2)), np.zeros(30, int)), "has one class, '0'"),
    ],
)
def test_what_a_factory_may_not_return(made: object, message: str) -> None:
    with pytest.raises(data.DataError) as caught:
        data.from_arrays("my:make", made)
    assert message in str(caught.value)


def test_only_one_source_of_data(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="not both"):
        chosen_data(tmp_path / "t.csv", "a", None, "m:f")
    with pytest.raises(data.DataError, match="belong to a table"):
        chosen_data(None, "a", None, None)


def test_claims_are_named() -> None:
    assert [c.id for c in chosen_claims("placement,speed")] == ["speed", "placement"]
    with pytest.raises(data.DataError, match=f"no claim 'sped'; there are: {', '.join(all_claims())}"):
        chosen_claims("sped")
    with pytest.raises(data.DataError, match="names no claim"):
        chosen_claims(",")


def test_splits_share_no_row_and_keep_the_classes() -> None:
    digits = shipped.digits()
    for seed in range(3):
        parts = data.split(digits, seed)
        rows = [set(part) for part in (parts.train, parts.validation, parts.test)]
        assert not rows[0] & rows[1]
        assert not rows[0] & rows[2]
        assert not rows[1] & rows[2]
        counts = np.bincount(digits.y[parts.test], minlength=10)
        assert counts.max() - counts.min() <= 2
    assert set(data.split(digits, 0).test) != set(data.split(digits, 1).test)


def test_goals_come_from_a_reference_model_and_noise_is_noted() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    clear = data.Dataset("clear", "", x, (x[:, 0] > 0).astype(np.int64), "classification", ("0", "1"))
    made = goals.with_goals(clear, 3).goals or {}
    assert len(made["hard"]["test"]) == 3
    for part in ("validation", "test"):
        for easy, hard in zip(made["easy"][part], made["hard"][part], strict=True):
            assert 0.85 < easy < hard < 1.0
    assert goals.with_goals(shipped.digits(), 2).goals == {
        level: {"validation": (goal, goal), "test": (goal, goal)} for level, goal in (("easy", 0.9), ("hard", 0.95))
    }
    x = rng.normal(size=(2000, 3)).astype(np.float32)
    noise = data.Dataset("noise", "", x, rng.integers(0, 2, 2000), "classification", ("0", "1"))
    with pytest.raises(data.DataError, match="target of noise cannot be told from its features"):
        goals.with_goals(noise, 3)


def test_decimal_commas_dates_and_row_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=ROWS).round(3)
    frame = pd.DataFrame(
        {
            "id": range(7, 7 + ROWS),
            "size": [str(v).replace(".", ",") for v in values],
            "day": [f"2024-01-{1 + i % 28:02}" for i in range(ROWS)],
            "sold": rng.integers(0, 2, ROWS),
        }
    )
    frame.to_csv(tmp_path / "t.csv", sep=";", index=False)
    found = table(tmp_path / "t.csv", "sold")
    assert np.array_equal(found.x[:, 0], values.astype(np.float32))
    assert found.notes[0] == "id: dropped, it numbers the rows"
    assert found.notes[2].startswith("day: dropped, a date")


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a, a,b\n" + "1,2,0\n3,4,1\n" * 20)
    with pytest.raises(data.DataError, match="two columns called 'a'; rename one"):
        table(tmp_path / "t.csv", "b")


@pytest.mark.parametrize(("scaling", "low", "high"), [("standard", -10.0, 10.0), ("minmax", 0.0, 1.0)])
def test_scaling_is_learned_per_feature_and_survives_constants(scaling: str, low: float, high: float) -> None:
    rows = np.stack([np.arange(10.0) * 1000, np.full(10, 3.0)], axis=1).astype(np.float32)
    shift, factor = data.scaler(scaling)(rows)
    scaled = (rows - shift) * factor
    assert low <= scaled.min() <= scaled.max() <= high
    assert np.isfinite(scaled).all()
    assert np.array_equal(scaled[:, 1], np.zeros(10))
