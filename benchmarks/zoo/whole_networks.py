"""Whole networks with this layer in place of torch's: inference, frozen fine-tuning, training, and the ONNX model.

    .venv-zoo/bin/python benchmarks/zoo/whole_networks.py      after `make zoo`, whose environment has timm

The three contenders take turns; the figures are the least times of each, and torch's time over ours.
"""

import argparse
import copy
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import packages
import torch
from torch import Tensor, nn

packages.prepare()

import timm  # noqa: E402

from batchnorm.surgery import convert  # noqa: E402
from batchnorm.torch import frozen  # noqa: E402

NETWORKS = ("resnet18", "efficientnet_b0")


def contenders(name: str) -> dict[str, nn.Module]:
    """Return a network with torch's layers, with ours, and with ours that include the activations of timm's."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10)
    ours, fused = copy.deepcopy(theirs), copy.deepcopy(theirs)
    convert(ours)
    convert(fused, fuse_activations=True)
    return {"torch": theirs, "ours": ours, "ours, fused": fused}


def hold(name: str, model: nn.Module) -> nn.Module:
    """Return the model in training, its batch normalization frozen: by its mode where the layer is torch's own."""
    model.train()
    if name == "torch":
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval().requires_grad_(requires_grad=False)
    else:
        frozen(model).apply()
    return model


def inferring(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return a forward without gradients."""

    def run() -> None:
        with torch.no_grad():
            model(x)

    return run


def learning(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return a forward and a backward."""

    def run() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    return run


def least(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least seconds of each, taking turns."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            found[name] = min(found[name], time.perf_counter() - start)
    return found


def as_onnx(model: nn.Module, x: Tensor, path: Path) -> tuple[int, Callable[[], object]]:
    """Return how many nodes a model has as ONNX, and a run of it in onnxruntime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    return len(onnx.load(path).graph.node), lambda: session.run(None, given)


def show(name: str, what: str, seconds: dict[str, float], notes: dict[str, Any] | None = None) -> None:
    """Print a line for each contender."""
    for contender, s in seconds.items():
        note = f"   {notes[contender]} nodes" if notes else ""
        print(f"{name:16} {what:20} {contender:12} {1e3 * s:8.1f} ms {seconds['torch'] / s:6.2f}x{note}", flush=True)


def main() -> None:
    """Measure every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="of the square images")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, timm {timm.__version__}, {args.threads} threads, {args.batch}×3×{args.size}²")
    x = torch.randn(args.batch, 3, args.size, args.size)
    for name in args.networks:
        made = contenders(name)
        show(name, "inference", least({n: inferring(m.eval(), x) for n, m in made.items()}, args.rounds))
        with tempfile.TemporaryDirectory() as folder:
            written = {n: as_onnx(m, x, Path(folder) / f"{n}.onnx") for n, m in made.items()}
            nodes = {n: count for n, (count, _) in written.items()}
            show(name, "onnxruntime", least({n: run for n, (_, run) in written.items()}, args.rounds), nodes)
        show(name, "training", least({n: learning(m.train(), x) for n, m in made.items()}, args.rounds))
        show(name, "frozen fine-tuning", least({n: learning(hold(n, m), x) for n, m in made.items()}, args.rounds))


if __name__ == "__main__":
    main()
