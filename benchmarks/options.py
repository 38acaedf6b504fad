"""Time a training step of the layer with each option, beside the plain path: the same passes and no option to look at.

    python benchmarks/options.py

Contenders are interleaved in one run, and all ratios are to the plain path. With no option chosen the layer does what
the plain path does, and guards the running statistics against inf and NaN.
"""

import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from batchnorm.bench.timing import interleaved
from batchnorm.core import step
from batchnorm.core.passes import NormInputs
from batchnorm.core.policy import Batch
from batchnorm.layout import axes_of
from batchnorm.statistics import Running
from batchnorm.torch import BatchNorm, Renorm
from batchnorm.torch.autograd import FRONTEND
from batchnorm.torch.state import write

SHAPES = [(64, 3), (4096, 1024), (32, 64, 56, 56), (32, 512, 7, 7)]
THREADS = 2


class Plain(BatchNorm):
    """The passes alone: nothing checked, nothing chosen, nothing guarded."""

    def forward(self, input: Tensor, residual: Any = None, weights: Any = None) -> Tensor:
        spec, inputs = self.norm_spec, NormInputs(input, self.weight, self.bias)
        call, running = (
            FRONTEND.plan(spec, inputs, axes_of(input.ndim, 1)),
            Running(self.running_mean, self.running_var),
        )
        y, batch = step.train(FRONTEND, spec, call, inputs, Batch(), running)
        after, _ = step.update(running, batch, spec, self.momentum, FRONTEND.xp)
        write(running, after)
        self.num_batches_tracked.add_(1)
        return y


def stepper(layer: BatchNorm, x: Tensor, dy: Tensor, **call: Any) -> Callable[[], None]:
    def one_step() -> None:
        x.grad = None
        layer(x, **call).backward(dy)

    return one_step


def contenders(x: Tensor, dy: Tensor) -> dict[str, Callable[[], None]]:
    features, residual = x.shape[1], torch.randn_like(x)
    mask = torch.rand(x.shape[0], *x.shape[2:]) > 0.3

    def layer(**options: Any) -> BatchNorm:
        return BatchNorm(features, **options)

    return {
        "plain path": stepper(Plain(features), x, dy),
        "no option, unguarded": stepper(layer(nonfinite="propagate"), x, dy),
        "no option": stepper(layer(), x, dy),
        "momentum=None": stepper(layer(momentum=None), x, dy),
        "activation": stepper(layer(activation="relu"), x, dy),
        "… and residual": stepper(layer(activation="relu"), x, dy, residual=residual),
        "virtual batches": stepper(layer(virtual_batch_size=16), x, dy),
        "renorm": stepper(layer(renorm=Renorm(rmax=3.0, dmax=5.0)), x, dy),
        "mask": stepper(layer(), x, dy, weights=mask),
    }


def main() -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    title = f"forward + backward, float32, {THREADS} threads, torch {torch.__version__}, {platform.machine()}"
    table = Table("option", *("×".join(map(str, s)) for s in SHAPES), title=f"{title}; median (min), ÷ plain path")
    ratios: dict[str, list[str]] = {}
    for shape in track(SHAPES, description="timing", console=Console(stderr=True)):
        x = (torch.randn(shape) * 2 + 3).requires_grad_()
        dy = torch.randn(shape)
        taken = interleaved(contenders(x, dy), rounds=200 if x.numel() < 1e5 else 21)
        base = taken["plain path"]
        for name, t in taken.items():
            ratio = statistics.median(t) / statistics.median(base)
            cell = f"{ratio:.2f} ({min(t) / min(base):.2f})" if name != "plain path" else f"{1e3 * min(t):.3g} ms"
            ratios.setdefault(name, []).append(cell)
    for name, cells in ratios.items():
        table.add_row(name, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
