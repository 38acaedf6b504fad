"""How far compiled training steps are from float64, ours beside the framework's own, at every shape of a ResNet-50.

    KERAS_BACKEND=jax python benchmarks/compiled_accuracy.py          # or tensorflow: with XLA and without
    KERAS_BACKEND=torch python benchmarks/compiled_accuracy.py        # the torch layer, eager kernel, by Inductor
    KERAS_BACKEND=jax python benchmarks/compiled_accuracy.py 8x256x14x14,64x3   # these shapes, written as in torch

The input is float32 and the same for all; float64 normalises just that. Outputs have variance one, so errors are
absolute: the largest of the output, and of the gradient of the input, at means of 1 and a million σ. A compiler
chooses for each shape what to fuse and in which order to add, so that no shape stands for another.
"""

import os
import platform
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("BATCHNORM_KERNEL", "eager")

import numpy as np
from keras import layers, ops
from keras_steps import BACKEND, MODES, step_of
from rich.console import Console
from rich.table import Table

from batchnorm import reference
from batchnorm.bench.cases import RESNET50, Case, parsed_shapes, written

SHAPES = [*RESNET50, (4096, 1024), (64, 3)]
MEANS = (1.0, 1e6)  # in σ
EPS = 1e-3


def keras_steps(shape: tuple[int, ...], mode: str) -> list[Callable[..., Any]]:
    """Return the steps of Keras' own layer and of ours."""
    from batchnorm.keras import BatchNormalization

    steps = []
    for kind in (layers.BatchNormalization, BatchNormalization):
        layer = kind()
        layer.build(shape)
        steps.append(step_of(layer, mode))
    return steps


def torch_steps(shape: tuple[int, ...], mode: str) -> list[Callable[..., Any]]:
    """Return the steps of torch's own layer and of ours, compiled by Inductor; x comes with its features last."""
    import torch

    from batchnorm.torch import BatchNorm

    del mode
    torch.compiler.reset()
    own = torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d
    steps = []
    for layer in (own(shape[-1], EPS), BatchNorm(shape[-1], EPS)):
        compiled = torch.compile(layer, dynamic=False)

        def step(x: Any, dy: Any, compiled: Any = compiled) -> list[Any]:
            leaf = x.movedim(-1, 1).requires_grad_()
            y = compiled(leaf)
            (dx,) = torch.autograd.grad(y, leaf, dy.movedim(-1, 1))
            return [a.detach().movedim(1, -1) for a in (y, dx)]

        steps.append(step)
    return steps


def errors(step: Callable[..., Any], x: np.ndarray, dy: np.ndarray) -> str:
    """Return the largest errors of y and dx, as they are written."""
    y, dx = (ops.convert_to_numpy(a) for a in step(ops.convert_to_tensor(x), ops.convert_to_tensor(dy))[:2])
    f = reference.train(x, eps=EPS, axis=-1)
    return f"{np.abs(y - f.y).max():.0e}, {np.abs(dx - reference.train_backward(dy, f).x).max():.0e}"


def main() -> None:
    modes = ("Inductor",) if BACKEND == "torch" else MODES
    own = "torch" if BACKEND == "torch" else "Keras"
    heads = [f"{name}, μ/σ = {mean:g}: y, dx" for mean in MEANS for name in (own, "batchnorm")]
    table = Table("shape", "compiled", *heads, title=f"largest errors, float32, {BACKEND}, {platform.machine()}")
    rng = np.random.default_rng(0)
    asked = list(dict.fromkeys(shape for shape, _ in parsed_shapes(sys.argv[1]))) if len(sys.argv) > 1 else SHAPES
    for shape in (Case(s, "NHWC" if len(s) == 4 else "NC", "float32", "train").in_memory for s in asked):
        x, dy = (rng.standard_normal(shape, np.float32) for _ in range(2))
        for mode in modes:
            steps = (torch_steps if BACKEND == "torch" else keras_steps)(shape, mode)
            cells = [errors(step, x + np.float32(mean), dy) for mean in MEANS for step in steps]
            table.add_row(written(shape), mode, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
