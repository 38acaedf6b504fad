"""Time a training step of the layer beside torch's own: interleaved, checked against float64 before it is timed.

    python benchmarks/layers.py

Prints ratios to torch eager; absolute times drift from machine to machine and hour to hour. The layer runs on framework
operations so far, several passes over memory where torch's kernel needs few: expect it to be slower.
"""

import platform
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from batchnorm import reference
from batchnorm.torch import BatchNorm

SHAPES = [(64, 3), (256, 512), (4096, 1024), (32, 64, 56, 56), (32, 256, 14, 14), (32, 512, 7, 7)]
ROUNDS = 15
THREADS = 2


def _step(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    def step() -> None:
        x.grad = None
        layer(x).backward(dy)

    return step


def _torch_layer(shape: tuple[int, ...]) -> nn.Module:
    return {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](shape[1])


def _check(layer: nn.Module, x: Tensor, mean: float) -> float:
    """Return the largest error of the training output against float64, the mean of x being that many of its σ."""
    shifted = x.detach() / x.std() + mean
    truth = torch.from_numpy(reference.train(shifted.numpy()).y)
    with torch.no_grad():
        return float((layer(shifted).double() - truth).abs().max())


def seconds(steps: dict[str, Callable[[], None]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= 3:  # the first rounds warm up
                taken[name].append(time.perf_counter() - start)
    return taken


def main() -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    table = Table(
        title=f"forward + backward, float32, {THREADS} threads, torch {torch.__version__}, {platform.machine()}"
    )
    for column in (
        "shape",
        "layout",
        "torch: min, median ms",
        "batchnorm: min, median ms",
        "ratio",
        "errors at μ/σ = 1, 10⁶: torch",
        "batchnorm",
    ):
        table.add_column(column, justify="right")
    cases = [(s, layout) for s in SHAPES for layout in (("NCHW", "NHWC") if len(s) == 4 else ("NC",))]
    for shape, layout in track(cases, description="timing", console=Console(stderr=True)):
        x = torch.randn(shape) * 2 + 3
        if layout == "NHWC":
            x = x.to(memory_format=torch.channels_last)
        dy = torch.randn_like(x)
        layers = {"torch": _torch_layer(shape), "batchnorm": BatchNorm(shape[1])}
        errors = [", ".join(f"{_check(layer, x, mean):.0e}" for mean in (1.0, 1e6)) for layer in layers.values()]
        x.requires_grad_()
        taken = seconds({name: _step(layer, x, dy) for name, layer in layers.items()})
        cells = [f"{1e3 * min(t):.3g}, {1e3 * statistics.median(t):.3g}" for t in taken.values()]
        ratio = statistics.median(taken["batchnorm"]) / statistics.median(taken["torch"])
        table.add_row("×".join(map(str, shape)), layout, *cells, f"{ratio:.2f}×", *errors)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
