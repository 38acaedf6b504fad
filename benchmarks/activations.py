"""Time every activation within the layer beside the layer with torch's own activation after it, and torch's layer.

    python benchmarks/activations.py

Contenders are interleaved in one run, freed memory is kept; times are those of the processor, of one thread, which
other programs hardly change. A cell holds least times as quotients: the layer and torch's activation ÷ fused, and
torch's layer and activation ÷ fused. Below 1, fusing does not pay.
"""

import platform
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from batchnorm.bench.cases import written
from batchnorm.bench.memory import keep
from batchnorm.bench.timing import interleaved
from batchnorm.kernels.native import abi
from batchnorm.torch import BatchNorm

SHAPES = [(64, 3), (8, 480, 6, 6), (8, 672, 7, 7), (32, 96, 56, 56), (32, 256, 14, 14), (4096, 1024)]
DTYPES = [torch.float32, torch.bfloat16]
SECONDS = 0.06  # of each contender
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def contenders(name: str, features: int, rank: int) -> dict[str, nn.Module]:
    theirs = nn.BatchNorm1d if rank == 2 else nn.BatchNorm2d
    return {
        "fused": BatchNorm(features, activation=name),  # pyright: ignore[reportArgumentType]
        "unfused": nn.Sequential(BatchNorm(features), ACTIVATIONS[name]()),
        "torch": nn.Sequential(theirs(features), ACTIVATIONS[name]()),
    }


def stepper(module: nn.Module, x: Tensor, dy: Tensor, *, training: bool) -> Callable[[], object]:
    module.train(training)

    def infer() -> Tensor:
        with torch.no_grad():
            return module(x)

    def train() -> None:
        given = x.detach().requires_grad_()
        module(given).backward(dy)

    return train if training else infer


def quotients(name: str, x: Tensor, dy: Tensor, *, training: bool) -> str:
    modules = contenders(name, x.shape[1], x.ndim)
    steps = {who: stepper(module, x, dy, training=training) for who, module in modules.items()}
    first = interleaved(steps, 1, time.thread_time)
    rounds = max(5, min(1000, int(SECONDS / min(first["fused"]))))
    least = {who: min(taken) for who, taken in interleaved(steps, rounds, time.thread_time).items()}
    return f"{least['unfused'] / least['fused']:.2f}  {least['torch'] / least['fused']:.2f}"


def row(shape: Sequence[int], dtype: torch.dtype, *, training: bool, last: bool) -> str:
    where = {"memory_format": torch.channels_last} if last else {}
    x, dy = ((torch.randn(*shape) * 2 + offset).to(dtype).contiguous(**where) for offset in (3, 0))
    name = f"{written(shape)}{' channels_last' if last else ''}"
    head = f"{name:28}{str(dtype).removeprefix('torch.'):10}{'training' if training else 'inference':11}"
    return head + "".join(f"{quotients(activation, x, dy, training=training):>13}" for activation in ACTIVATIONS)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep()
    library = abi.load()
    kernel = library if isinstance(library, str) else library.instruction_set
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, native kernel: {kernel}"
    print(f"one thread, torch {torch.__version__}, {machine}; unfused ÷ fused, torch ÷ fused")
    print(" " * 49 + "".join(f"{activation:>13}" for activation in ACTIVATIONS))
    for dtype in DTYPES:
        for shape in SHAPES:
            for last in [False, True] if len(shape) == 4 else [False]:
                for training in (False, True):
                    print(row(shape, dtype, training=training, last=last), flush=True)


if __name__ == "__main__":
    main()
