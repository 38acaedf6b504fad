"""Asking changes nothing: neither model nor optimizer, loss, data or random numbers, however it ends."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from asking import ROWS, Everything, Noting, arrays, ask, cross_entropy, network

pytestmark = pytest.mark.usefixtures("clock_of_work")


def trained(optimizer: str) -> tuple[nn.Module, Any, Any, Everything]:
    """Return a model in the middle of its training, with gradients and a part of it in eval."""
    model, (x, y) = Noting(), arrays()
    made: Any = {
        "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, 0.01),
        "amsgrad": lambda p: torch.optim.AdamW(p, torch.tensor(0.01), amsgrad=True),
    }[optimizer](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(made, 1, gamma=0.5)
    for _ in range(2):
        made.zero_grad()
        cross_entropy(model(x), y).backward()
        made.step()
        scheduler.step()
    model.still.eval()
    cross_entropy(model(x), y).backward()
    model.output = None
    return model, made, scheduler, Everything(model, made, scheduler)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "amsgrad"])
def test_everything_is_the_same_afterwards(optimizer: str) -> None:
    model, made, scheduler, everything = trained(optimizer)
    advice = ask(model, cross_entropy, arrays(), made)
    everything.assert_same()
    assert advice.limits["gradient_noise"].value is not None
    before = float(made.param_groups[0]["lr"])
    made.step()
    scheduler.step()  # which would warn if it were made to believe that the optimizer has not stepped
    assert float(made.param_groups[0]["lr"]) == before / 2


def failing(at: int, error: BaseException) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss that raises at its call number `at`."""
    calls = 0

    def loss(output: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return cross_entropy(output, target)

    return loss


@pytest.mark.parametrize("at", [2, 8, 30, 300])
def test_everything_is_the_same_after_an_error(at: int) -> None:
    model, made, _, everything = trained("sgd")
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        ask(model, failing(at, ZeroDivisionError("on purpose")), arrays(), made, budget_s=60)
    everything.assert_same()


@pytest.mark.parametrize("at", range(1, 7))  # one to see that all goes together, four for the memory, one more
def test_before_a_step_is_timed_an_interrupt_is_an_interrupt(at: int) -> None:
    model, made, _, everything = trained("adam")
    with pytest.raises(KeyboardInterrupt):
        ask(model, failing(at, KeyboardInterrupt()), arrays(), made)
    everything.assert_same()


PHASES = {7: "throughput", 60: "throughput", 140: "gradient noise", 330: "gradient noise"}  # at which call of the loss


@pytest.mark.parametrize(("at", "phase"), PHASES.items())
@pytest.mark.parametrize("own", [True, False])
def test_an_interrupt_leaves_what_is_known(at: int, phase: str, own: bool) -> None:
    model, made, _, everything = trained("adam")
    advice = ask(model, failing(at, KeyboardInterrupt()), arrays(), made if own else None)
    everything.assert_same()
    assert advice.interrupted == phase
    assert advice.confidence == "low"
    assert phase in advice.doubts[0]
    assert (advice.limits["throughput"].value is not None) == (at > min(PHASES))  # one size makes no line
    assert advice.limits["memory"].value >= 4
    assert 1 <= advice.batch_size <= ROWS
    assert json.loads(advice.to_json())["interrupted"] == phase
    assert "interrupted" in str(advice)
    assert (advice.limits["gradient_noise"].value is not None) == (phase == "gradient noise")


def test_a_loss_that_learns_is_the_same_afterwards() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_weight = nn.Parameter(torch.zeros(3))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            return cross_entropy(output * self.log_weight.exp(), target)

    model, loss = network(), Weighted()
    loss.log_weight.grad = torch.ones(3)
    made = torch.optim.SGD([*model.parameters(), *loss.parameters()], 0.1)
    of_model, of_loss = Everything(model, made), Everything(loss)
    ask(model, loss, arrays(), made)
    of_model.assert_same()
    of_loss.assert_same()


def test_the_generator_of_a_dataloader_is_the_same_afterwards() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*arrays()), batch_size=16, shuffle=True, generator=generator)
    before = generator.get_state()
    ask(None, cross_entropy, loader)
    assert torch.equal(before, generator.get_state())


def test_the_same_seed_draws_the_same_rows() -> None:
    def first(seed: int) -> tuple[float, float]:
        stage = ask(seed=seed, budget_s=1.0).details["gradient_noise"]["stages"][0]
        assert stage["blocks"] == 30
        return stage["signal"], stage["noise"]

    assert first(0) == first(0)
    assert first(0) != first(1)
