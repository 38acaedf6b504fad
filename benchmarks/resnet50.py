"""Time a training step of ResNet-50: with torch.nn.BatchNorm2d, with ours in its place, ours fused, and none; in turn.

    python benchmarks/resnet50.py                       # writes benchmarks/results/resnet50.txt and .json
    python benchmarks/resnet50.py --memory default

Batch 32 of 64×64 images that are random numbers with random labels: nothing is learned, and speed does not depend on
it. float32, SGD. The step without any such layer tells how much the fastest one could gain. First the others must give
the same loss and gradients from the same weights: to 1e-9 in float64, and in float32 within twice the error of torch's.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from resnet import CLASSES, ResNet50, bare, fused, swapped, with_torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from batchnorm.bench import memory
from batchnorm.bench.machine import busy, machine, usable_processors
from batchnorm.bench.timing import interleaved

RESULTS = Path(__file__).parent / "results" / "resnet50"
BASE = "torch.nn.BatchNorm2d"
NETWORKS: dict[str, Callable[[], ResNet50]] = {
    BASE: with_torch,
    "batchnorm, swapped 1:1": swapped,
    "batchnorm, fused ReLU and add": fused,
}
BARE = "no layer: the most any could gain"
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
BATCH, SIZE, RATE = 32, 64, 0.1
GOAL = 1.15
CHECKED = 8  # images
# Relative differences to torch's network in float64, of the loss and of all gradients as one vector. In float64 they
# are alike; in float32 rounding flips ReLUs, and ours may be off by twice what torch's own is.
EXACT, TIMES_TORCHS, ROUNDING = 1e-9, 2.0, 1e-6


def step_of(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], float]:
    optimizer = torch.optim.SGD(model.parameters(), RATE)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def loss_and_gradient(model: nn.Module, x: Tensor, target: Tensor) -> tuple[float, Tensor]:
    loss = nn.functional.cross_entropy(model(x), target)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.cat([g.double().flatten() for g in gradients])


def differences(models: dict[str, nn.Module], x: Tensor, target: Tensor) -> dict[str, dict[str, float]]:
    """Return how far loss and gradient of each are from torch's network in float64: in float64 and in float32."""
    loss, gradient = loss_and_gradient(copy.deepcopy(models[BASE]).double(), x.double(), target)

    def off(model: nn.Module, x: Tensor) -> tuple[float, float]:
        its_loss, its_gradient = loss_and_gradient(model, x, target)
        return abs(its_loss - loss) / abs(loss), float((its_gradient - gradient).norm() / gradient.norm())

    found: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        exact, rounded = off(copy.deepcopy(model).double(), x.double()), off(copy.deepcopy(model), x)
        found[name] = dict(zip(("loss64", "gradient64", "loss32", "gradient32"), (*exact, *rounded), strict=True))
    return found


def check(off: dict[str, dict[str, float]], layout: str) -> None:
    """Refuse to time a network that computes something else."""
    for name, its in off.items():
        limits = {"loss64": EXACT, "gradient64": EXACT}
        limits |= {key: TIMES_TORCHS * off[BASE][key] + ROUNDING for key in ("loss32", "gradient32")}
        for key, limit in limits.items():
            if not its[key] <= limit:
                raise SystemExit(f"{name}, {layout}: {key} is off by {its[key]:.1e}, allowed {limit:.1e}: not timed")


def measured(layout: str, rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {name: make() for name, make in NETWORKS.items()}
    state = models[BASE].state_dict()
    for model in models.values():
        model.load_state_dict(state)
        model.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    x = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=LAYOUTS[layout])
    target = torch.randint(CLASSES, (BATCH,))
    off = differences(models, x[:CHECKED], target[:CHECKED])
    check(off, layout)
    models[BARE] = bare().to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    taken = interleaved({name: step_of(model, x, target) for name, model in models.items()}, rounds)
    base = min(taken[BASE])
    rows: list[dict[str, Any]] = []
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        row = {
            "layout": layout,
            "network": name,
            "min_s": min(seconds),
            "median_s": median,
            "ratio": base / min(seconds),
        }
        rows.append({**row, **off.get(name, {})})
    return rows


def table(found: dict[str, Any]) -> Table:
    versions = ", ".join(f"{name} {version}" for name, version in found["machine"]["versions"].items())
    title = (
        f"training step of ResNet-50, batch {BATCH}, {SIZE}×{SIZE} random images, float32, SGD\n"
        f"{found['machine']['cpu']}, {found['threads']} threads, memory {found['memory']}; {versions}\n"
        f"{found['rounds']} rounds in turn; goal: {GOAL}× as fast as with torch's layer{''.join(found['notes'])}"
    )
    made = Table("layout", "network", title=title, title_justify="left")
    for column in ("min ms", "median ms", "vs torch", "gradient off: in float64", "in float32"):
        made.add_column(column, justify="right")
    for row in found["rows"]:
        times = (f"{1e3 * row[key]:.0f}" for key in ("min_s", "median_s"))
        off = (f"{row[key]:.0e}" if key in row else "–" for key in ("gradient64", "gradient32"))
        made.add_row(row["layout"], row["network"], *times, f"{row['ratio']:.3f}×", *off)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--memory", choices=memory.MODES, default="kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="without its ending: .txt and .json are written")
    asked = parser.parse_args()
    kept = asked.memory == "default" or memory.keep()
    torch.set_num_threads(asked.threads)
    here = machine()
    here["versions"]["torch"] = torch.__version__
    notes = [f"; {note}" for note in (busy(), None if kept else "freed memory was NOT kept: no glibc") if note]
    found: dict[str, Any] = {"machine": here, "threads": asked.threads, "memory": asked.memory, "notes": notes}
    found |= {"rounds": asked.rounds, "goal": GOAL, "rows": []}
    for layout in LAYOUTS:
        found["rows"] += measured(layout, asked.rounds)
    Console(width=124).print(table(found))
    with asked.out.with_suffix(".txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=124).print(table(found))
    asked.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
