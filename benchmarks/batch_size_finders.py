"""Ask the batch size finders of PyTorch Lightning and accelerate what `batchnorm.batch_size` is asked, side by side.

    python benchmarks/batch_size_finders.py

First the largest size: on scikit-learn's digits, with a memory that is simulated, by a network that runs out of it
above so many samples. The finders are the installed ones. Every size is noted of which a step has come to its backward.

Known as: Lightning-AI/pytorch-lightning issues 9625 and 20231 (out of memory at the size that was found) and 20614
(`max_val`, wished for); huggingface/accelerate pull request 3650 (halving, now × 0.9).

Then the gradient noise scale tr Σ/|G|²: by comparing the gradients of two batch sizes, as usual, and by groups of one
size. Under batch normalization two sizes have two objectives, and their comparison even gives |G|² < 0.

Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1, for the two sizes.
"""

import gc
import logging
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from batchnorm.batch_size import Advice, advise
from batchnorm.batch_size.gradient_noise import Block, GroupGradients, measure, noise_scale

_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision  # noqa: F401, which PyTorch Lightning imports
except RuntimeError:  # its build for CUDA finds no operators of its own beside torch's build for CPUs
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
with warnings.catch_warnings(action="ignore"):
    from pytorch_lightning import LightningModule, Trainer
    from pytorch_lightning.tuner import Tuner

THREADS = 1  # the network is small; a second waits more than it works
WANTED = 100  # the largest size asked for, where there is one
PLENTY = 1000
PAIRS = [(4, 256), (8, 64), (16, 128), (32, 512)]
GROUPS = [8, 64]
STAGES = [0, 30, 200]  # steps of training
DRAWS, BLOCKS = 300, 100
NAMES = {"Lightning": "pytorch_lightning", "accelerate": "accelerate", "torch": "torch", "scikit-learn": "scikit-learn"}


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def network(*, normalized: bool) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = (
        (nn.Linear(64, 64, bias=not normalized), *([nn.BatchNorm1d(64)] if normalized else []), nn.ReLU())
        for _ in range(2)
    )
    return nn.Sequential(*(layer for block in blocks for layer in block), nn.Linear(64, 10))


@dataclass
class Device:
    """Where training happens.

    Attributes:
        most: So many samples fit into its memory in training.
        ran: The sizes of which a step has come to its backward.
    """

    most: int
    ran: set[int] = field(default_factory=set)


class Limited(nn.Module):
    """The network on a device."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.network, self.device = network(normalized=True), device

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.network(x)
        if len(x) > self.device.most:
            raise torch.OutOfMemoryError("CUDA out of memory. This one is simulated.")
        y = self.network(x)
        y.register_hook(lambda _: self.device.ran.add(len(x)))
        return y


class Lit(LightningModule):
    """The network as PyTorch Lightning wants it."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.model, self.batch_size = Limited(device), 2

    def training_step(self, batch: Any, _: int) -> Tensor:
        return cross_entropy(self.model(batch[0]), batch[1])

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*digits()), batch_size=self.batch_size)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


Finder = Callable[[Device], float | None]


def by_lightning(device: Device, **options: Any) -> int | None:
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        trainer = Trainer(accelerator="cpu", default_root_dir=folder, enable_model_summary=False, **silent)
        return Tuner(trainer).scale_batch_size(Lit(device), **options)


def step(model: Limited, size: int) -> None:
    x, target = digits()
    cross_entropy(model(x[:size]), target[:size]).backward()


def by_accelerate(device: Device, start: int) -> int:
    model = Limited(device)

    @find_executable_batch_size(starting_batch_size=start)
    def train(batch_size: int) -> int:
        step(model, batch_size)
        return batch_size

    return train()


def by_batchnorm(device: Device, candidates: Sequence[int] | None = None) -> Advice:
    return advise(Limited(device), cross_entropy, digits(), candidates=candidates, budget_s=2, progress=False)


def fits(size: int, most: int) -> bool:
    try:
        step(Limited(Device(most)), size)
    except torch.OutOfMemoryError:
        return False
    return True


def questions() -> list[tuple[str, int, dict[str, Finder]]]:
    largest: dict[str, Finder] = {
        "Lightning power": lambda d: by_lightning(d, mode="power"),
        "Lightning binsearch": lambda d: by_lightning(d, mode="binsearch"),
        "accelerate from 8": lambda d: by_accelerate(d, 8),
        "accelerate from 128": lambda d: by_accelerate(d, 128),
        "batchnorm, memory": lambda d: by_batchnorm(d).limits["memory"].value,
        "batchnorm, advised": lambda d: by_batchnorm(d).batch_size,
    }
    most, tens = {"max_val": WANTED}, range(10, WANTED + 1, 10)
    wanted: dict[str, Finder] = {
        "Lightning power, max_val": lambda d: by_lightning(d, mode="power", **most),
        "Lightning binsearch, max_val": lambda d: by_lightning(d, mode="binsearch", **most),
        "… and margin=0": lambda d: by_lightning(d, mode="binsearch", margin=0.0, **most),
        f"accelerate from {WANTED}": lambda d: by_accelerate(d, WANTED),
        "batchnorm, candidates, memory": lambda d: by_batchnorm(d, tens).limits["memory"].value,
        "batchnorm, candidates, advised": lambda d: by_batchnorm(d, tens).batch_size,
    }
    return [
        ("memory for 100", 100, largest),
        (f"… for {PLENTY}, at most {WANTED} wanted", PLENTY, wanted),
        (f"… for 85, at most {WANTED} wanted", 85, wanted),
    ]


def finders() -> Table:
    table = Table(title="The largest batch: what the finders return, and what they have run")
    for column in ("", "finder", "returns", "has run", "a step of it", "steps that ran"):
        table.add_column(column, justify="right" if column == "returns" else "left")
    for question, most, asked in track(questions(), description="finders", console=Console(stderr=True)):
        for place, (name, find) in enumerate(asked.items()):
            device = Device(most)
            size = int(find(device) or 0)
            runs = "runs" if fits(size, most) else "OUT OF MEMORY"
            table.add_row(
                question if place == 0 else "",
                name,
                f"{size} > {WANTED}" if "max_val" in name and size > WANTED else str(size),
                "yes" if size in device.ran else "NEVER",
                runs,
                " ".join(map(str, sorted(device.ran))),
                end_section=place == len(asked) - 1,
            )
    return table


class Gradients:
    """Gradients of the mean loss of rows of the digits, at the weights as they are."""

    def __init__(self, model: nn.Module) -> None:
        self.model, (self.x, self.target) = model, digits()
        self.parameters = list(model.parameters())
        self.random = torch.Generator().manual_seed(1)

    def backward(self, rows: Tensor) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        cross_entropy(self.model(self.x[rows]), self.target[rows]).backward()

    def square(self, size: int) -> float:
        """Return |g|² of a batch drawn with replacement."""
        self.backward(torch.randint(len(self.x), (size,), generator=self.random))
        return math.fsum(float(p.grad.square().sum()) for p in self.parameters)

    def without_replacement(self, size: int) -> None:
        self.backward(torch.randperm(len(self.x), generator=self.random)[:size])

    def train(self, steps: int) -> None:
        optimizer = torch.optim.SGD(self.parameters, lr=0.1)
        for _ in range(steps):
            self.without_replacement(64)
            optimizer.step()


def two_sizes(gradients: Gradients, small: int, big: int) -> list[Block]:
    """Return what pairs of batches say of |G|² and tr Σ, as if both had one objective."""
    found = []
    for _ in range(DRAWS):
        of_small, of_big = gradients.square(small), gradients.square(big)
        signal = (big * of_big - small * of_small) / (big - small)
        found.append(Block(signal, (of_small - of_big) / (1 / small - 1 / big)))
    return found


def signal(blocks: list[Block]) -> str:
    values = [block.signal for block in blocks]
    return f"{statistics.fmean(values):.2g} ± {statistics.stdev(values) / math.sqrt(len(values)):.1g}"


def cell_of_pair(gradients: Gradients, small: int, big: int) -> str:
    blocks = two_sizes(gradients, small, big)
    ratio = statistics.fmean(b.noise for b in blocks) / statistics.fmean(b.signal for b in blocks)
    return f"{ratio:,.0f}  ({signal(blocks)})"


def cell_of_groups(gradients: Gradients, group: int) -> str:
    taken = GroupGradients(gradients.parameters)
    blocks, _ = measure(gradients.without_replacement, taken, rows=len(gradients.x), group=group, blocks=BLOCKS)
    found = noise_scale(blocks)
    value = f"≥ {found.value:,.0f}" if found.is_bound else f"{found.value:,.0f} [{found.low:,.0f}, {found.high:,.0f}]"
    return f"{value}  ({signal(blocks)})"


def exact(gradients: Gradients) -> str:
    """Return tr Σ/|G|² from the gradient of every sample, which there is only without batch normalization."""
    weights = {name: p.detach() for name, p in gradients.model.named_parameters()}

    def loss(weights: Any, x: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(functional_call(gradients.model, weights, (x[None],)), target[None])

    each = vmap(grad(loss), (None, 0, 0))(weights, gradients.x, gradients.target)
    each = torch.cat([g.flatten(1) for g in each.values()], 1).double()
    of_mean = float(each.mean(0).square().sum())
    return f"{float(each.square().sum(1).mean()) / of_mean - 1:,.0f}  ({of_mean:.2g})"


def noise(*, normalized: bool) -> Table:
    name = "WITH" if normalized else "WITHOUT"
    table = Table(title=f"Gradient noise scale in samples (and |G|²), {name} batch normalization")
    for column in ("estimator", *(f"after {steps} steps" for steps in STAGES)):
        table.add_column(column)
    gradients, rows, done = Gradients(network(normalized=normalized)), {}, 0
    for steps in track(STAGES, description="noise", console=Console(stderr=True)):
        gradients.train(steps - done)
        done = steps
        for pair in PAIRS:
            rows.setdefault(f"two sizes, {pair[0]} and {pair[1]}", []).append(cell_of_pair(gradients, *pair))
        for group in GROUPS:
            rows.setdefault(f"batchnorm, groups of {group}", []).append(cell_of_groups(gradients, group))
        if not normalized:
            rows.setdefault("exact, sample by sample", []).append(exact(gradients))
    for name, cells in rows.items():
        table.add_row(name, *cells, end_section=name == f"two sizes, {PAIRS[-1][0]} and {PAIRS[-1][1]}")
    return table


def main() -> None:
    torch.set_num_threads(THREADS)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    gc.freeze()  # the finders collect garbage at every size; what the imports have left need not be looked through
    console = Console(width=140)
    console.print(", ".join(f"{name} {version(package)}" for name, package in NAMES.items()), highlight=False)
    console.print(finders())
    for normalized in (True, False):
        console.print(noise(normalized=normalized))
    said = f"±: one standard error, of {DRAWS} pairs or {BLOCKS} blocks of 4 groups. [95 % interval]. ≥: a lower bound."
    console.print(said, markup=False, highlight=False)


if __name__ == "__main__":
    main()
