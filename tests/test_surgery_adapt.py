"""Statistics of another domain, for a while."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.surgery import adapt
from batchnorm.torch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from tolerance import assert_close

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "NC": (BatchNorm1d(3), (20, 3)), "NCL": (BatchNorm1d(3), (20, 3, 5)), "NCHW": (BatchNorm2d(3), (20, 3, 4, 4)),
    "NCDHW": (BatchNorm3d(3), (20, 3, 2, 2, 2)), "NLC": (BatchNorm(3, axis=-1), (20, 5, 3)),
    "torch": (nn.BatchNorm2d(3), (20, 3, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("mode", ["replace", "mix"])
def test_statistics_of_any_rank(name: str, mode: Any) -> None:
    layer, shape = LAYERS[name]
    model = nn.Sequential(layer).eval()
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(1, 2)
    x = torch.randn(shape) * 3 + 7
    before = [buffer.clone() for buffer in layer.buffers()]
    axis = getattr(layer, "axis", 1)
    values = x.double().movedim(axis, -1).flatten(0, -2).numpy()
    mean, var = values.mean(0), values.var(0, ddof=1)
    if mode == "mix":
        share = 20 / (10 + 20)
        mean = before[0].numpy() * (1 - share) + share * mean
        var = before[1].numpy() * (1 - share) + share * var
    with adapt(model, [x[:13], x[13:]], mode, prior=10) as adapted:
        assert adapted is model
        assert_close(layer.running_mean.numpy(), mean, "float32", np.abs(mean) + 1)
        assert_close(layer.running_var.numpy(), var, "float32", var)
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), before, strict=True))


def test_undo_and_what_else_stays() -> None:
    model = nn.Sequential(nn.Linear(2, 2), BatchNorm1d(2), nn.Dropout()).train()
    parameters = [p.clone() for p in model.parameters()]
    adapted = adapt(model, torch.randn(8, 2) + 9)
    assert (adapted.names, adapted.numbers["samples"]) == (["1"], 8)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), parameters, strict=True))
    assert adapted.undo() is model
    assert (model[1].running_mean.tolist(), model[1].num_batches_tracked.item()) == ([0, 0], 0)


def test_an_error_inside_the_block_undoes_too() -> None:
    model = nn.Sequential(BatchNorm1d(2)).eval()
    with pytest.raises(OSError, match="gone"), adapt(model, torch.randn(8, 2) + 9):
        raise OSError("gone")
    assert model[0].running_mean.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"mode": "blend"}, ArgumentError, "got 'blend'"),
        ({"prior": -1.0}, ArgumentError, "got -1"),
        ({"prior": "many"}, ArgumentError, "got 'many'"),
        ({"min_count": 9}, BatchNormError, "at least 9 values.*0: 8"),
        ({"layers": "1"}, ArgumentError, "'1'"),
    ],
)
def test_refusals_change_nothing(options: dict[str, Any], error: type[Exception], says: str) -> None:
    model = nn.Sequential(BatchNorm1d(2)).eval()
    with pytest.raises(error, match=says):
        adapt(model, torch.randn(8, 2) + 9, **options)
    assert model[0].running_mean.tolist() == [0, 0]
    with pytest.raises(BatchNormError, match="at least 2 values"):
        adapt(model, torch.randn(1, 2))
    with pytest.raises(BatchNormError, match="nothing to change"):
        adapt(nn.Linear(2, 2), torch.randn(8, 2))


def test_a_shifted_domain_is_classified_again() -> None:
    """A threshold learned on one domain, and the same data moved and stretched."""
    torch.manual_seed(0)
    x, y = torch.randn(400, 4), torch.arange(400) % 2
    x[:, 0] += 4.0 * y
    model = nn.Sequential(BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    def accuracy(x: torch.Tensor) -> float:
        with torch.no_grad():
            return (model.eval()(x).argmax(1) == y).float().mean().item()

    moved = x * 3 - 20
    home, away = accuracy(x), accuracy(moved)
    with adapt(model, moved):
        assert accuracy(moved) > home - 0.02
    assert accuracy(moved) == away < 0.6


def test_samples_are_counted_once_however_often_a_layer_is_called() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + self.norm(x + 4)

    model = Twice().eval()
    with adapt(model, torch.full((16, 2), 6.0), "mix", prior=16):
        assert model.norm.running_mean.tolist() == [4, 4]  # (16·0 + 16·8)/(16 + 16)


def test_undo_finds_buffers_that_were_cast_and_a_second_one_does_nothing() -> None:
    model = nn.Sequential(BatchNorm1d(2)).eval()
    adapted = adapt(model, torch.randn(8, 2) + 9)
    model.double()
    adapted.undo()
    assert model[0].running_mean.tolist() == [0, 0]
    model[0].running_mean += 5
    adapted.undo()
    assert model[0].running_mean.tolist() == [5, 5]
