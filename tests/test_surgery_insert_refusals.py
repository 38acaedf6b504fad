"""Where batch normalization cannot be inserted: the model is as it was, and the reason is told."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchnorm.errors import BatchNormError
from batchnorm.surgery import insert
from batchnorm.torch import BatchNorm


class Asks(nn.Module):
    """Activates behind what is a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts[:-1]:
            x = part(x)
            if isinstance(part, nn.Linear):
                x = torch.relu(x)
        return self.parts[-1](x)


class Aliased(nn.Module):
    """Calls its layers from a tuple, past their names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.parts = (self.a, self.b)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[1](torch.relu(self.parts[0](x)))


@pytest.mark.parametrize(
    ("model", "says"), [(Asks(), "it calls other things than before"), (Aliased(), "a is called by another way")]
)
def test_what_would_run_otherwise_is_taken_out_again(model: nn.Module, says: str) -> None:
    x = torch.randn(3, 4)
    before, expected, written = copy.deepcopy(model.state_dict()), model(x), repr(model)
    with pytest.raises(BatchNormError, match=says):
        insert(model, x)
    assert repr(model) == written
    assert list(model.state_dict()) == list(before)
    assert torch.equal(model(x), expected)


class Way(nn.Module):
    """(N, L, C) with L = C, activated, and then something that may move the features."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.then, self.relu, self.last = nn.Linear(4, 4), then, nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.then(self.first(x))))


@pytest.mark.parametrize(
    "then",
    [
        lambda y: y.mean(-1),
        lambda y: y.mean(1),  # right, but nobody can tell it from the other by the shapes
        lambda y: torch.rot90(y, 1, (1, 2)),
        lambda y: y.reshape(y.shape[0], 4, 4),
        lambda y: y.transpose(1, 2),
    ],
)
def test_where_the_features_may_have_moved(then: Any) -> None:
    with pytest.raises(BatchNormError, match="relu: which axis holds the features cannot be told"):
        insert(Way(then), torch.randn(3, 4, 4), "after")


def test_where_they_cannot_have_moved() -> None:
    model = Way(lambda y: y.mean(1))
    insert(model, torch.randn(3, 5, 4), "after")  # five positions, four features
    layer: Any = model.relu[1]  # type: ignore[index]
    assert (layer.num_features, layer.axis) == (4, 1)
    model = Way(lambda y: y * 2 + 1)
    insert(model, torch.randn(3, 4, 4), "after")
    layer = model.relu[1]  # type: ignore[index]
    assert (layer.num_features, layer.axis) == (4, -1)


def test_images_without_a_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with pytest.raises(BatchNormError, match="0: which axis holds the features cannot be told"):
        insert(model, torch.randn(3, 6, 6))


def test_parts_that_torch_runs_in_its_own_way() -> None:
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    with pytest.raises(BatchNormError, match="runs the parts of TransformerEncoderLayer, self_attn in its own"):
        insert(block, torch.randn(5, 2, 16))
    with pytest.raises(BatchNormError, match="linear1: it is not called, or by something"):
        insert(block, torch.randn(5, 2, 16), where="linear1")


def test_wrappers_and_gates() -> None:
    model = nn.DataParallel(nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.Linear(4, 2)))
    assert insert(model, torch.randn(3, 4)).names == ["module.0"]
    assert isinstance(model.module[0][1], BatchNorm)
    compiled = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    compiled.compile(backend="eager")
    with torch.no_grad():
        compiled(torch.randn(3, 4))
    assert insert(compiled, torch.randn(3, 4)).names == ["0"]


def test_clamps_are_activations_and_a_hint_helps_with_others() -> None:
    class Own(nn.Module):
        def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 2), act

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.act(self.a(x)))

    assert insert(Own(lambda y: y.clamp(min=0)), torch.randn(3, 4)).names == ["a"]
    with pytest.raises(BatchNormError, match="`where` names layers to put it behind"):
        insert(Own(torch.sin), torch.randn(3, 4))
    assert insert(Own(torch.sin), torch.randn(3, 4), where="a").names == ["a"]
    with pytest.raises(BatchNormError, match="Own: it is the model itself: name a module in it"):
        insert(Own(torch.sin), torch.randn(3, 4), where=lambda name, _: not name)
    with pytest.raises(BatchNormError, match="or `where` names none"):
        insert(Own(torch.sin), torch.randn(3, 4), where=lambda *_: False)
