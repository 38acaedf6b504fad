"""What runs in each of several processes; they import it by name, which they could not do with a test module."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import batchnorm.torch
from batchnorm.batch_size import advise
from batchnorm.surgery import recalibrate

PROCESSES = 2
SECONDS = 60.0
LAYERS: dict[str, Any] = {"ours": batchnorm.torch.BatchNorm2d, "torch": nn.BatchNorm2d}


def network(layer: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), LAYERS[layer](4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def batches(rank: int, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    shape = (6, 3, 8, 8)
    return [
        (torch.randn(shape, generator=generator) + rank, torch.randint(2, (6,), generator=generator))
        for _ in range(steps)
    ]


def train(model: nn.Module, rank: int, steps: int = 2) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for x, target in batches(rank, steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).float(), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def in_ddp(layer: str, rank: int) -> dict[str, Any]:
    torch.manual_seed(rank)  # what each process starts from is overwritten by the first's
    model = network(layer)
    wrapped = DistributedDataParallel(model)
    found = {"losses": train(wrapped, rank), "grads": {n: p.grad for n, p in model.named_parameters()}}
    found |= {"trained": state(model)}
    wrapped.eval()(batches(rank, 1)[0][0])
    return found | {"evaluated": state(model)}


def in_fsdp(layer: str, rank: int, policies: dict[str, MixedPrecisionPolicy], steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = network(layer)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    fully_shard(model[1], mesh=mesh, mp_policy=policies["layer"])
    fully_shard(model, mesh=mesh, mp_policy=policies["model"])
    losses = train(model, rank, steps)
    gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    local = {name: p.to_local().shape for name, p in model.named_parameters()}
    return {"losses": losses, "gathered": gathered, "local": local, "sharded": isinstance(model[1], FSDPModule)}


def in_float32(layer: str, rank: int) -> dict[str, Any]:
    return in_fsdp(layer, rank, {"layer": MixedPrecisionPolicy(), "model": MixedPrecisionPolicy()}, steps=2)


def in_bfloat16(layer: str, rank: int) -> dict[str, Any]:
    """Ours takes parameters in bfloat16 as they come; torch's does not on a CPU, and keeps float32."""
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policies = {"layer": low if layer == "ours" else MixedPrecisionPolicy(cast_forward_inputs=False), "model": low}
    return in_fsdp(layer, rank, policies, steps=1)


def in_advice(layer: str, rank: int) -> dict[str, Any]:
    """Ask for a batch size on all processes, each of which goes its own way for as long as it measures."""
    torch.manual_seed(rank)
    model = DistributedDataParallel(network(layer))
    images, targets = (torch.cat(parts) for parts in zip(*batches(0, 20), strict=True))
    before = state(model)
    advice = advise(model, nn.functional.cross_entropy, (images, targets), budget_s=1.5, progress=False, seed=rank)
    unchanged = all(torch.equal(before[name], value) for name, value in state(model).items())
    return {"advice": advice.as_dict(), "unchanged": unchanged}


IMAGES = 26, 3, 8, 8


def deep(layer: str) -> nn.Sequential:
    """Return three layers, one behind the other."""
    torch.manual_seed(0)
    return nn.Sequential(
        network(layer), nn.BatchNorm1d(2), nn.Sigmoid(), nn.Linear(2, 3), batchnorm.torch.BatchNorm1d(3)
    )


def in_recalibration(layer: str, rank: int) -> dict[str, Any]:
    """Recalibrate by shares of the data of different sizes; then let the second process's data fail, or lack."""
    model = deep(layer)
    shares = (torch.randn(IMAGES) + 4).split((17, 9))
    recalibrate(model, list(shares[rank].split(5)), sequential=True)
    found, failures = state(model), []
    for theirs in ([shares[1].flatten()], []):
        try:
            recalibrate(model, [shares[0]] if rank == 0 else theirs)
            failures.append("")
        except Exception as error:
            failures.append(str(error))
    return {"found": found, "after": state(model), "failures": failures}


def run(rank: int, works: list[Callable[[str, int], dict[str, Any]]], folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(  # meets in a file: no port to be taken
        "gloo",
        init_method=(folder / "meeting").as_uri(),
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=SECONDS),
    )
    found = {work.__name__: {layer: work(layer, rank) for layer in LAYERS} for work in works}
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def sleep(rank: int) -> None:
    time.sleep(SECONDS)


def finish(context: Any, seconds: float) -> None:
    """Wait for the processes; kill them, and fail, where that takes too long or one has failed."""
    until = time.monotonic() + seconds
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < until, f"still running after {seconds} s"
    finally:
        for process in context.processes:
            process.kill()
            process.join()


def start(function: Any, *arguments: Any) -> Any:
    return torch.multiprocessing.spawn(function, arguments, PROCESSES, join=False)
