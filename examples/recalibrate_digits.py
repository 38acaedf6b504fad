"""Accuracy on digits by the moving averages and by the statistics of the data, after training in batches of 4.

    python examples/recalibrate_digits.py

Ten seeds; what counts is the difference on the same network.
"""

from statistics import fmean, stdev

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from batchnorm.surgery import recalibrate
from batchnorm.torch import BatchNorm1d

BATCH, EPOCHS, SEEDS, RATE = 4, 5, 10, 0.05
WAYS = {"moving averages": None, "recalibrated, one pass": False, "recalibrated, sequential": True}


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
    scores = model(x)
    return (scores.argmax(1) == y).float().mean().item(), nn.functional.cross_entropy(scores, y).item()


def main() -> None:
    """Print both, and the difference with its standard error."""
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    train_x, test_x, train_y, test_y = train_test_split((x / 16).float(), y, test_size=0.4, random_state=0)
    by: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for seed in range(SEEDS):
        model = trained(train_x, train_y, seed)
        for name, sequential in WAYS.items():
            if sequential is not None:
                recalibrate(model, train_x.split(100), sequential=sequential)
            by[name].append(judged(model, test_x, test_y))
    before = [accuracy for accuracy, _ in by["moving averages"]]
    for name, found in by.items():
        accuracy, loss = ([one[i] for one in found] for i in (0, 1))
        gains = [now - then for now, then in zip(accuracy, before, strict=True)]
        gained = f"  gained {fmean(gains):+.4f} ± {stdev(gains) / SEEDS**0.5:.4f}" if any(gains) else ""
        print(f"{name:25} accuracy {fmean(accuracy):.4f}, cross-entropy {fmean(loss):.4f}{gained}")


if __name__ == "__main__":
    main()
