"""`advise` on a real clock, and in several processes."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tolerance
from asking import ROWS, arrays, ask, cross_entropy, network, samples
from processes import LAYERS, PROCESSES, SECONDS, finish, in_advice, run, start


class Slow(Dataset[Any]):
    """Takes its time for every row."""

    def __init__(self) -> None:
        self.rows = samples()

    def __getitem__(self, i: int) -> Any:
        time.sleep(0.02)  # many times what a row takes in a step, on a busy machine too
        return self.rows[i]

    def __len__(self) -> int:
        return ROWS


def test_a_slow_dataset_is_said_to_be_one() -> None:
    advice = ask(None, cross_entropy, DataLoader(Slow(), batch_size=4), budget_s=2.0)
    assert any(note.startswith("input-bound: the data come at") for note in advice.notes)
    quick = DataLoader(TensorDataset(*arrays()), batch_size=None, sampler=range(0))
    assert not any("input-bound" in note for note in ask(None, cross_entropy, quick.dataset).notes)


class Sleepy(nn.Module):
    """Takes its time: so much a call, so much a row."""

    def __init__(self, call: float, row: float) -> None:
        super().__init__()
        self.inner, self._taken = network(), (call, row)

    def forward(self, x: Tensor) -> Tensor:
        call, row = self._taken
        time.sleep(call + row * len(x))
        return self.inner(x)


@pytest.mark.parametrize(("call", "row"), [(0.02, 0.0), (0.0, 0.001)])
def test_the_budget_is_kept(call: float, row: float) -> None:
    budget = 4.0
    start = time.perf_counter()
    advice = ask(Sleepy(call, row), cross_entropy, arrays(400), budget_s=budget)
    taken = time.perf_counter() - start
    step = call + row * advice.details["memory"]["ran"][-1]
    assert taken <= tolerance.OVERTIME * budget + step
    assert taken >= budget / 2  # and made use of
    assert advice.limits["gradient_noise"].value is not None


def test_two_processes_give_one_answer(tmp_path: Path) -> None:
    finish(start(run, [in_advice], tmp_path), SECONDS)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False)["in_advice"] for rank in range(PROCESSES))
    for layer in LAYERS:
        one, other = (found[layer]["advice"] for found in (first, second))
        assert one == other
        assert one["processes"] == PROCESSES
        assert one["batch_size"] % PROCESSES == 0
        assert one["group_size"] <= one["batch_size"] // PROCESSES
        assert one["limits"]["statistics_noise"]["value"] is not None
        assert any("each of 2 normalises its own" in note for note in one["notes"])
        assert first[layer]["unchanged"]
        assert second[layer]["unchanged"]
