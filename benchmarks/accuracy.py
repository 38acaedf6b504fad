"""How far the training output is from float64, ours beside torch's own, where the mean is 1 and a million σ.

    python benchmarks/accuracy.py

The input is float32 and the same for all; float64 normalises just that. Outputs have variance one, so errors are
absolute.
"""

import platform

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from batchnorm import reference
from batchnorm.bench.cases import written
from batchnorm.torch import BatchNorm

SHAPES = [(64, 3), (256, 512), (4096, 1024), (32, 64, 56, 56), (32, 256, 14, 14), (32, 512, 7, 7)]
MEANS = (1.0, 1e6)  # in σ


def inputs(shape: tuple[int, ...], mean: float, layout: str) -> Tensor:
    x = torch.randn(shape) + mean
    return x.to(memory_format=torch.channels_last) if layout == "NHWC" else x


def error(layer: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((layer(x).double() - torch.from_numpy(reference.train(x.numpy()).y)).abs().max())


def main() -> None:
    torch.manual_seed(0)
    title = f"largest error of the training output, float32, torch {torch.__version__}, {platform.machine()}"
    heads = [f"{name}, μ/σ = {mean:g}" for mean in MEANS for name in ("torch", "batchnorm")]
    table = Table("shape", "layout", *heads, title=title)
    for shape in SHAPES:
        for layout in ("NCHW", "NHWC") if len(shape) == 4 else ("NC",):
            torchs = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
            xs = [inputs(shape, mean, layout) for mean in MEANS]
            cells = [f"{error(make(shape[1]), x):.0e}" for x in xs for make in (torchs, BatchNorm)]
            table.add_row(written(shape), layout, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
