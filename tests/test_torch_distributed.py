"""Several processes: DDP and FSDP2 over gloo train the layer as they train torch's own."""

from typing import Any

import pytest
import torch

from namespaces import to_numpy
from processes import LAYERS, PROCESSES, SECONDS, finish, in_bfloat16, in_ddp, in_float32, network, run, sleep, start
from tolerance import assert_close


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every process has found, by its rank."""
    folder = tmp_path_factory.mktemp("processes")
    finish(start(run, [in_ddp, in_float32, in_bfloat16], folder), SECONDS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


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
