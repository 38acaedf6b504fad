"""Whole networks with this layer in place of torch's: inference, frozen fine-tuning, training, and the ONNX model.

    .venv-zoo/bin/python benchmarks/zoo/whole_networks.py      after `make zoo`, whose environment has timm

The three contenders take turns, a different one first in each round. The figures are the least time of each, and the
median over the rounds of torch's time over ours. The ONNX models of the contenders are compared node by node, too.
"""

import argparse
import copy
import os
import statistics
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


def measured(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each in every round, taking turns."""
    names = list(runs)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            runs[name]()
            found[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in found.items()}


def as_onnx(model: nn.Module, x: Tensor, path: Path) -> tuple[list[Any], Callable[[], object]]:
    """Return the operators of a model as ONNX, each with its attributes, and a run of it in onnxruntime.

    Idle threads do not spin: those of the contenders before would take the processor from the one that runs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    operators = [
        (node.op_type, sorted((a.name, str(onnx.helper.get_attribute_value(a))) for a in node.attribute))
        for node in onnx.load(path).graph.node
    ]
    return operators, lambda: session.run(None, given)


def show(name: str, what: str, seconds: dict[str, list[float]], notes: dict[str, str] | None = None) -> None:
    """Print a line for each contender."""
    for contender, taken in seconds.items():
        ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds["torch"], taken, strict=True))
        note = f"   {notes[contender]}" if notes else ""
        print(f"{name:16} {what:20} {contender:12} {1e3 * min(taken):8.1f} ms {ratio:6.2f}x{note}", flush=True)


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
        show(name, "inference", measured({n: inferring(m.eval(), x) for n, m in made.items()}, args.rounds))
        with tempfile.TemporaryDirectory() as folder:
            written = {n: as_onnx(m, x, Path(folder) / f"{n}.onnx") for n, m in made.items()}
            theirs = written["torch"][0]
            nodes = {n: f"{len(o)} nodes" + ", torch's own" * (o == theirs) for n, (o, _) in written.items()}
            show(name, "onnxruntime", measured({n: run for n, (_, run) in written.items()}, args.rounds), nodes)
        show(name, "training", measured({n: learning(m.train(), x) for n, m in made.items()}, args.rounds))
        show(name, "frozen fine-tuning", measured({n: learning(hold(n, m), x) for n, m in made.items()}, args.rounds))


if __name__ == "__main__":
    main()
