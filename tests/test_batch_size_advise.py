"""What `advise` answers: of what it was told to choose from, and of what has run."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asking import ROWS, Everything, arrays, ask, cross_entropy, network
from batchnorm.batch_size import Advice
from batchnorm.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("clock_of_work")


def test_candidates_are_all_that_is_tried_and_chosen_from() -> None:
    advice = ask(candidates=[40, 10, 25])
    assert advice.batch_size in (10, 25, 40)
    assert set(advice.seconds) <= {10, 25, 40}
    assert set(advice.details["memory"]["ran"]) <= {10, 25, 40, advice.details["group"]}


def test_the_group_that_is_given_is_kept() -> None:
    advice = ask(group=12)
    assert advice.group_size == 12
    assert advice.details["group"] == 12
    assert "groups of 12" in advice.limits["gradient_noise"].note


def test_little_compute_is_a_fifth_of_the_noise_scale() -> None:
    x, y = arrays(2000)
    advice = ask(network(nn.Identity), cross_entropy, (x, y), objective="compute", budget_s=1.0)
    critical = advice.limits["gradient_noise"].value
    assert critical is not None
    assert advice.batch_size <= max(0.2 * critical, 4)
    assert advice.objective == "compute"
    assert "0.2·Bcrit" in str(advice)


def refuse(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def test_json_holds_everything() -> None:
    advice = ask(budget_s=1.0)
    plain = json.loads(advice.to_json(), parse_constant=refuse)
    assert set(plain) == set(Advice.__dataclass_fields__)
    assert plain["batch_size"] == advice.batch_size
    assert set(plain["limits"]) == {"memory", "throughput", "gradient_noise", "statistics_noise"}
    for name, limit in advice.limits.items():
        assert plain["limits"][name]["value"] == limit.value
        assert set(plain["limits"][name]) == {"value", "low", "high", "is_bound", "note"}
    assert plain["details"]["rows"] == ROWS
    assert len(plain["details"]["gradient_noise"]["stages"]) >= 1
    assert plain["details"]["layers"][0]["name"] == "1"
    assert plain["momentum"] == {"0.1": advice.momentum[0.1]}
    assert {int(size) for size in plain["seconds"]} == {4, 8, 16, 32, 64}


@pytest.mark.parametrize("objective", ["time", "compute"])
def test_the_page_is_a_hundred_columns_wide(objective: Any) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a_name_that_goes_on_and_on_and_on_for_quite_a_while_as_some_do_in_deep_networks = network()

        def forward(self, x: Tensor) -> Tensor:
            return next(self.children())(x)

    text = str(ask(Deep(), objective=objective))
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "Batch size B = ",
        "m = ",
        "memory",
        "throughput",
        "gradient noise",
        "statistics noise",
        "predicted time is least at" if objective == "time" else "0.2·Bcrit",
    ):
        assert part in text


class Narrow(nn.Module):
    """Has memory for no more than `most` rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most = network(), most
        self.trained: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"no memory for {len(x)} rows")
        SIZES.add(len(x))
        return self.inner(x)


SIZES: set[int] = set()  # not an attribute of the model, which would be given back


@pytest.mark.parametrize("most", [5, 20, 50, 150])
def test_what_runs_out_of_memory_is_not_advised(most: int) -> None:
    SIZES.clear()
    model = Narrow(most)
    everything = Everything(model)
    advice = ask(model, cross_entropy, arrays(800), budget_s=1.0)
    everything.assert_same()
    limit = advice.limits["memory"]
    expected = {5: 4, 20: 16, 50: 48, 150: 128}[most]
    assert limit.value == expected
    assert most <= limit.high
    assert not limit.is_bound
    assert "ran out of memory" in limit.note
    assert advice.batch_size <= expected
    assert advice.batch_size in SIZES
    assert advice.limits["gradient_noise"].value is not None


def test_where_not_even_the_smallest_candidate_fits_it_is_said() -> None:
    model = Narrow(20)
    everything = Everything(model)
    with pytest.raises(ArgumentError, match=r"64.*memory|memory.*64"):
        ask(model, cross_entropy, arrays(800), candidates=[64, 128])
    everything.assert_same()


def test_candidates_above_what_fits_are_not_chosen() -> None:
    advice = ask(Narrow(20), cross_entropy, arrays(800), candidates=[8, 12, 64, 128])
    assert advice.batch_size in (8, 12)
