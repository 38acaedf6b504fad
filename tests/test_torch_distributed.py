"""Several processes: DDP and FSDP2 over gloo train the layer as they train torch's own."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import batchnorm.torch
from namespaces import to_numpy
from tolerance import assert_close

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


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every process has found, by its rank."""
    folder = tmp_path_factory.mktemp("processes")
    finish(start(run, [in_ddp, in_float32, in_bfloat16], folder), SECONDS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def sleep(rank: int) -> None:
    time.sleep(SECONDS)


def test_a_process_that_hangs_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="still running"):
        finish(start(sleep), 0.5)


def assert_same(ours: dict[str, Any], torchs: dict[str, Any], dtype: str = "float32") -> None:
    assert list(ours) == list(torchs)
    for name in torchs:
        assert_close(to_numpy(ours[name]), to_numpy(torchs[name]), dtype, 4.0)


@pytest.mark.parametrize("rank", range(PROCESSES))
@pytest.mark.parametrize("what", ["grads", "trained", "evaluated"])
def test_ddp_trains_the_layer_as_it_trains_torchs(found: list[dict[str, Any]], rank: int, what: str) -> None:
    here = found[rank]["in_ddp"]
    assert_close(here["ours"]["losses"], here["torch"]["losses"], "float32", 4.0)
    assert_same(here["ours"][what], here["torch"][what])


def test_ddp_gives_every_process_the_same_gradients_from_batches_of_its_own(found: list[dict[str, Any]]) -> None:
    first, second = (f["in_ddp"]["ours"] for f in found)
    assert first["losses"] != second["losses"]
    assert any(g.abs().max() > 0 for name, g in first["grads"].items() if name.startswith("1."))
    assert [n for n in first["grads"] if not torch.equal(first["grads"][n], second["grads"][n])] == []


def test_ddp_broadcasts_the_statistics_of_the_first_process(found: list[dict[str, Any]]) -> None:
    first, second = (f["in_ddp"]["ours"] for f in found)
    for name in ("1.running_mean", "1.running_var"):
        assert second["trained"][name].isfinite().all()
        assert not torch.equal(second["trained"][name], first["trained"][name])
        assert torch.equal(second["evaluated"][name], first["trained"][name])
    assert second["evaluated"]["1.num_batches_tracked"] == 2


@pytest.mark.parametrize("rank", range(PROCESSES))
def test_fsdp_shards_the_layer_and_trains_it_as_it_trains_torchs(found: list[dict[str, Any]], rank: int) -> None:
    ours, torchs = (found[rank]["in_float32"][layer] for layer in LAYERS)
    assert ours["sharded"]
    assert ours["local"]["1.weight"] == (4 // PROCESSES,)
    assert_close(ours["losses"], torchs["losses"], "float32", 4.0)
    assert_same(ours["gathered"], torchs["gathered"])


def test_a_plain_model_of_torchs_layers_loads_what_fsdp_gathers(found: list[dict[str, Any]]) -> None:
    gathered = found[0]["in_float32"]["ours"]["gathered"]
    network("torch").load_state_dict(gathered)
    assert not torch.equal(gathered["1.weight"], torch.ones(4))
    assert not torch.equal(gathered["1.running_mean"], torch.zeros(4))


@pytest.mark.parametrize("rank", range(PROCESSES))
def test_fsdp_with_parameters_in_bfloat16_keeps_statistics_in_float32(found: list[dict[str, Any]], rank: int) -> None:
    ours, torchs = (found[rank]["in_bfloat16"][layer]["gathered"] for layer in LAYERS)
    for name in ("1.running_mean", "1.running_var"):
        assert ours[name].dtype == torch.float32
        assert_close(to_numpy(ours[name]), to_numpy(torchs[name]), "float32", 4.0)
