"""Hold the advised batch size against exhaustive measurement, on five tasks.

    python benchmarks/batch_size_prediction.py

For each task and three draws of its weights `advise` predicts, from four limits measured in seconds; and `measure=3`
trains to the same held-out loss at every size, each at the best learning rate found for it, the median over three
orders of the data. Time is steps × the median seconds of a step, which were timed in turns in the same run. The 20
layers are left out below 32, where they rarely arrive. All data ship with scikit-learn. Takes a quarter of an hour.
"""

import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
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
SEEDS = 3
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


@dataclass(frozen=True)
class Task:
    """A network, its data, and the smallest size it is trained at."""

    name: str
    data: Callable[[], tuple[Any, Any]]
    model: Callable[[], nn.Module]
    smallest: int = 4

    def sizes(self) -> list[int]:
        return [size for size in SIZES if self.smallest <= size <= len(self.data()[0]) // 2]


def perceptron(
    inputs: int, outputs: int, activation: type[nn.Module], *, width: int, depth: int, normalized: bool = True
) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        hidden = layers(inputs, width, depth, activation, normalized=normalized)
        return nn.Sequential(*hidden, nn.Linear(width, outputs))

    return made


TASKS = [
    Task("digits, 3 × 100 sigmoid, normalised", digits, perceptron(64, 10, nn.Sigmoid, width=100, depth=3)),
    Task(
        "digits, 3 × 100 ReLU, not normalised",
        digits,
        perceptron(64, 10, nn.ReLU, width=100, depth=3, normalized=False),
    ),
    Task("digits, two convolutions, normalised", digits, convolutional),
    Task("breast cancer table, 2 × 50 ReLU, normalised", tumours, perceptron(30, 2, nn.ReLU, width=50, depth=2)),
    Task("digits, 20 × 50 ReLU, normalised", digits, perceptron(64, 10, nn.ReLU, width=50, depth=20), smallest=32),
]


def advised(task: Task, seed: int) -> Advice:
    torch.manual_seed(seed)
    return advise(
        task.model(), cross_entropy, task.data(), candidates=task.sizes(), budget_s=BUDGET, measure=REPEATS, seed=seed
    )


def there(advice: Advice) -> float:
    """Return the measured time at the advised size, over the least."""
    return advice.measured.get(advice.batch_size, math.inf)


def line(task: Task, found: list[Advice]) -> list[str]:
    """Return a row of the table: medians over the seeds, and of the time at the advised size the worst too."""
    limits = [
        f"{statistics.median(a.limits[limit].value or 0.0 for a in found):.0f}"
        for limit in ("gradient_noise", "throughput")
    ]
    at = [there(a) for a in found]
    times = [statistics.median(a.measured.get(size, math.inf) for a in found) for size in SIZES]
    told = [f"{t:.2f}" if math.isfinite(t) else "–" for t in times]
    chosen = ", ".join(str(size) for size in sorted({a.batch_size for a in found}))
    return [task.name, *limits, chosen, f"[bold]{statistics.median(at):.2f}[/] ({max(at):.2f})", *told]


def main() -> None:
    torch.set_num_threads(THREADS)
    errors = Console(stderr=True)
    title = f"measured time to the target ÷ least; {THREADS} thread, torch {torch.__version__}, {platform.machine()}"
    table = Table("task", "Bcrit", "Bhalf", "advised B", "time there (worst)", *map(str, SIZES), title=title)
    medians, worst = list[float](), 0.0
    for task in TASKS:
        start = time.perf_counter()
        found = [advised(task, seed) for seed in range(SEEDS)]
        medians.append(statistics.median(there(a) for a in found))
        worst = max(worst, *(there(a) for a in found))
        table.add_row(*line(task, found))
        errors.print(f"{task.name}: {time.perf_counter() - start:.0f} s")
    Console(width=170).print(table)
    print(f"Median of {SEEDS} seeds; –: more than twice the steps that the law allows, or never.")
    print(f"At the advised size it is at most {max(medians):.2f} times the least, {worst:.2f} with the worst seed; "
          f"{ALLOWED} is allowed.")  # fmt: skip


if __name__ == "__main__":
    main()
