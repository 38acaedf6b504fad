"""What a study accepts, what it makes of it, and what it refuses in one line."""

import numpy as np
import pytest

from batchnorm.study import data, goals, shipped
from batchnorm.study.claims import all_claims, chosen_claims


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


@pytest.mark.parametrize(("scaling", "low", "high"), [("standard", -10.0, 10.0), ("minmax", 0.0, 1.0)])
def test_scaling_is_learned_per_feature_and_survives_constants(scaling: str, low: float, high: float) -> None:
    rows = np.stack([np.arange(10.0) * 1000, np.full(10, 3.0)], axis=1).astype(np.float32)
    shift, factor = data.scaler(scaling)(rows)
    scaled = (rows - shift) * factor
    assert low <= scaled.min() <= scaled.max() <= high
    assert np.isfinite(scaled).all()
    assert np.array_equal(scaled[:, 1], np.zeros(10))
