"""Batch normalization put into models that have none."""

import pytest
import torch
from torch import nn

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.surgery import insert
from batchnorm.torch import BatchNorm


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def test_before_and_after_the_activation() -> None:
    x = torch.randn(8, 4)
    before, after = mlp(), mlp()
    assert insert(before, x).names == ["0", "2"]
    assert insert(after, x, "after").names == ["1", "3"]
    for net, order in ((before, [nn.Linear, BatchNorm, nn.ReLU]), (after, [nn.Linear, nn.ReLU, BatchNorm])):
        leaves = [m for m in net.modules() if not list(m.children())]
        assert [type(m) for m in leaves[:3]] == order
        assert [m.num_features for m in leaves if isinstance(m, BatchNorm)] == [6, 5]
        assert net(x).shape == (8, 2)


def test_axis_and_features_of_every_kind_of_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.ConvTranspose2d(3, 2, 3), nn.SiLU())
            self.token, self.act = nn.Linear(5, 7), nn.ReLU()
            self.head = nn.Linear(7, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.act(self.token(self.stem(x).flatten(1, 2))))

    for position in ("before", "after"):
        net = Net()
        insert(net, torch.randn(2, 1, 5, 5), position)
        found = [(m.num_features, m.axis) for m in net.modules() if isinstance(m, BatchNorm)]
        assert found == [(3, 1), (2, 1), (7, -1)]
        assert net(torch.randn(2, 1, 5, 5)).shape == (2, 10, 1)


def test_the_model_is_looked_at_and_left_as_it_was() -> None:
    net = mlp()
    net.append(nn.Dropout())
    net[1].eval()
    modes = [m.training for m in net.modules()]
    values = [p.clone() for p in net.parameters()]
    with pytest.raises(RuntimeError):
        insert(net, torch.randn(8, 3))
    assert [m.training for m in net.modules()] == modes
    assert not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(values, net.parameters(), strict=True))
    assert not any(isinstance(m, BatchNorm) for m in net.modules())


def test_what_is_refused_is_named() -> None:
    with pytest.raises(ArgumentError, match="got 'between'"):
        insert(mlp(), torch.randn(2, 4), "between")
    with pytest.raises(BatchNormError, match=r"nothing to change in Linear \(no layer to normalise before"):
        insert(nn.Linear(4, 2), torch.randn(2, 4))
    shared = nn.Linear(4, 4)
    with pytest.raises(BatchNormError, match="0: it is called 2 times"):
        insert(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 1)), torch.randn(2, 4))
