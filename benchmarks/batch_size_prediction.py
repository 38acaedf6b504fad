"""Hold the advised batch size against exhaustive measurement, on five tasks.

    python benchmarks/batch_size_prediction.py

For each task `advise` predicts, from four limits measured in seconds; and `measure=3` trains to the same held-out loss
at every size, each at the best learning rate found for it, the median over three orders of the data. Time is steps ×
the median seconds of a step, which were timed in turns in the same run. All data ship with scikit-learn.
"""

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from torch import nn
from torch.nn.functional import cross_entropy

from batchnorm.batch_size import Advice, advise
from batchnorm.torch import BatchNorm1d, BatchNorm2d

SIZES = [4, 8, 16, 32, 64, 128, 256, 512]
REPEATS = 3
BUDGET = 600.0
THREADS = 1
ALLOWED = 1.5


def layers(inputs: int, width: int, depth: int, activation: type[nn.Module], *, normalized: bool) -> list[nn.Module]:
    made: list[nn.Module] = []
    for features in (inputs, *[width] * (depth - 1)):
        made += [nn.Linear(features, width), *([BatchNorm1d(width)] if normalized else []), activation()]
    return made


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def digits() -> tuple[Any, Any]:
    found: Any = datasets.load_digits()
    return (found.data / 16).astype(np.float32), found.target


def tumours() -> tuple[Any, Any]:
    found: Any = datasets.load_breast_cancer()
    return ((found.data - found.data.mean(0)) / found.data.std(0)).astype(np.float32), found.target


TASKS: dict[str, tuple[Callable[[], tuple[Any, Any]], Callable[[], nn.Module]]] = {
    "digits, 3 × 100 sigmoid, normalised": (
        digits, lambda: nn.Sequential(*layers(64, 100, 3, nn.Sigmoid, normalized=True), nn.Linear(100, 10)),
    ),
    "digits, 3 × 100 ReLU, not normalised": (
        digits, lambda: nn.Sequential(*layers(64, 100, 3, nn.ReLU, normalized=False), nn.Linear(100, 10)),
    ),
    "digits, two convolutions, normalised": (digits, convolutional),
    "breast cancer table, 2 × 50 ReLU, normalised": (
        tumours, lambda: nn.Sequential(*layers(30, 50, 2, nn.ReLU, normalized=True), nn.Linear(50, 2)),
    ),
    "digits, 20 × 50 ReLU, normalised": (
        digits, lambda: nn.Sequential(*layers(64, 50, 20, nn.ReLU, normalized=True), nn.Linear(50, 10)),
    ),
}  # fmt: skip


def line(name: str, advice: Advice) -> list[str]:
    """Return a line of the table: the advised size, the time there and at every size, divided by the least."""
    times = [f"{advice.measured[size]:.2f}" if size in advice.measured else "" for size in SIZES]
    marked = [f"[bold]{t}[/]" if size == advice.batch_size else t for size, t in zip(SIZES, times, strict=True)]
    bcrit, bhalf = (advice.limits[limit].value or 0.0 for limit in ("gradient_noise", "throughput"))
    return [
        name,
        f"{bcrit:.0f}",
        f"{bhalf:.0f}",
        str(advice.batch_size),
        f"{advice.measured[advice.batch_size]:.2f}",
        *marked,
    ]


def main() -> None:
    torch.set_num_threads(THREADS)
    errors = Console(stderr=True)
    title = f"measured time to the target ÷ least; {THREADS} thread, torch {torch.__version__}, {platform.machine()}"
    table = Table("task", "Bcrit", "Bhalf", "advised B", "there", *map(str, SIZES), title=title)
    worst = 0.0
    for name, (data, model) in TASKS.items():
        start = time.perf_counter()
        torch.manual_seed(0)
        sizes = [size for size in SIZES if size <= len(data()[0]) // 2]
        advice = advise(model(), cross_entropy, data(), candidates=sizes, budget_s=BUDGET, measure=REPEATS)
        worst = max(worst, advice.measured[advice.batch_size])
        table.add_row(*line(name, advice))
        errors.print(f"{name}: {time.perf_counter() - start:.0f} s")
    Console(width=170).print(table)
    print(f"At the advised size the time is at most {worst:.2f} times the least measured; {ALLOWED} is allowed.")


if __name__ == "__main__":
    main()
