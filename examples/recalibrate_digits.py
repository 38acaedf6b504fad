"""Accuracy on digits by the moving averages and by the statistics of the data, after training in batches of 4.

    python examples/recalibrate_digits.py

Ten seeds; what counts is the difference on the same network. The data come in batches of 32, shuffled or sorted by
class, to `recalibrate` and to torch's `update_bn`.
"""

import copy
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.optim.swa_utils import update_bn

from batchnorm.surgery import recalibrate
from batchnorm.torch import BatchNorm1d

BATCH, EPOCHS, SEEDS, RATE = 4, 5, 10, 0.05
Batches = Sequence[torch.Tensor]
WAYS: dict[str, Callable[[nn.Module, Batches], object] | None] = {
    "moving averages": None,
    "recalibrate": recalibrate,
    "update_bn": lambda model, batches: update_bn(batches, model),
}


def trained(x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    """Return a small network after some epochs of plain SGD."""
    torch.manual_seed(seed)
    hidden = [nn.Linear(64, 32), BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), BatchNorm1d(32), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH)[:-1]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def judged(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Return accuracy and cross-entropy."""
    scores = model.eval()(x)
    return (scores.argmax(1) == y).float().mean().item(), nn.functional.cross_entropy(scores, y).item()


def main() -> None:
    """Print both for each way, and the difference with its standard error."""
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    train_x, test_x, train_y, test_y = train_test_split((x / 16).float(), y, test_size=0.4, random_state=0)
    data = {"shuffled": train_x.split(32), "sorted": train_x[train_y.argsort()].split(32)}
    by: dict[str, list[tuple[float, float]]] = {}
    for seed in range(SEEDS):
        model = trained(train_x, train_y, seed)
        for name, renew in WAYS.items():
            for order, batches in data.items() if renew is not None else [("", ())]:
                renewed = copy.deepcopy(model)
                if renew is not None:
                    renew(renewed, batches)
                by.setdefault(f"{name} {order}".strip(), []).append(judged(renewed, test_x, test_y))
    before = [accuracy for accuracy, _ in by["moving averages"]]
    for name, found in by.items():
        accuracy, loss = ([one[i] for one in found] for i in (0, 1))
        gains = [now - then for now, then in zip(accuracy, before, strict=True)]
        gained = f", gained {100 * fmean(gains):+.2f} ± {100 * stdev(gains) / SEEDS**0.5:.2f}" if any(gains) else ""
        print(f"{name:20} accuracy {100 * fmean(accuracy):.2f} %{gained}; cross-entropy {fmean(loss):.3f}")


if __name__ == "__main__":
    main()
