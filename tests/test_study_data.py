"""What a study accepts, what it makes of it, and what it refuses in one line."""

import numpy as np
import pytest

from batchnorm.study import data, shipped
from batchnorm.study.claims import QUICK, all_claims, chosen_claims


def test_claims_are_named() -> None:
    assert [c.id for c in chosen_claims("placement,speed")] == ["speed", "placement"]
    assert [c.id for c in chosen_claims(None)] == [c.id for c in chosen_claims("all", quick=True)] == list(all_claims())
    assert [c.id for c in chosen_claims(None, quick=True)] == list(QUICK)
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


@pytest.mark.parametrize(("scaling", "low", "high"), [("standard", -10.0, 10.0), ("minmax", 0.0, 1.0)])
def test_scaling_is_learned_per_feature_and_survives_constants(scaling: str, low: float, high: float) -> None:
    rows = np.stack([np.arange(10.0) * 1000, np.full(10, 3.0)], axis=1).astype(np.float32)
    shift, factor = data.scaler(scaling)(rows)
    scaled = (rows - shift) * factor
    assert low <= scaled.min() <= scaled.max() <= high
    assert np.isfinite(scaled).all()
    assert np.array_equal(scaled[:, 1], np.zeros(10))
