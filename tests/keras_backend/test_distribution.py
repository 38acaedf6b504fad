"""One layer on several replicas, devices or processes: together they are one process with all samples."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import on_replicas as places
import pytest
from differentiate import BACKEND, Array, Call, called, moving
from on_replicas import APART, BATCH, EPOCHS, FITS, MOMENTUM, SECONDS, START, STEPS, TOGETHER, data, made, parts

from batchnorm.keras import BatchNormalization
from tolerance import assert_same_to_project_bound

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="a distribution of JAX")
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="a group of processes of PyTorch")
NUMPY = "ignore:__array__ implementation:DeprecationWarning"  # Keras 3.15 with NumPy 2.4; see pyproject.toml


def spread(folder: Path, **environment: str) -> dict[Any, Any]:
    """Return what the layers and models have found over the devices of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", NUMPY, places.__file__, str(folder)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-5_000:]
    answers: dict[Any, Any] = pickle.loads((folder / "answers.pickle").read_bytes())
    return answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("places")


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[Any, Any]:
    """What has been found on several devices; and, in the folder, the models that were fitted there."""
    flags = {"jax": {"XLA_FLAGS": f"--xla_force_host_platform_device_count={places.DEVICES}"}}
    return spread(folder, **flags.get(BACKEND, {}))


def joined(calls: list[Call]) -> Call:
    """Return the calls of the replicas as one: samples behind each other, gradients of what they share added."""
    shared = [np.sum(g, axis=0) for g in zip(*(c.gradients for c in calls), strict=True)]
    return Call(np.concatenate([c.y for c in calls]), np.concatenate([c.dx for c in calls]), shared)


def assert_same_call(one: Call, other: Call) -> None:
    assert_same_to_project_bound(one.y, other.y)
    assert_same_to_project_bound(one.dx, other.dx)
    assert len(one.gradients) == len(other.gradients) == 2
    for mine, its in zip(one.gradients, other.gradients, strict=True):
        assert_same_to_project_bound(mine, its)


def assert_same_values(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert_same_to_project_bound(found[name], value)


# --- one process, one device ---------------------------------------------------------------------------------------

ALONE: dict[str, dict[str, Any]] = {"plain": {}, "renorm": places.RENORM, "virtual batches": {"virtual_batch_size": 4}}


def assert_changes_nothing(options: dict[str, Any], case: places.Case) -> None:
    layers = [made("ours", case, synchronized=flag, **options) for flag in (True, False)]
    for step in range(STEPS):
        x, dy, call = data(case, step)
        one, other = (called(layer, x, dy, **call) for layer in layers)
        for mine, its in zip((one.y, one.dx, *one.gradients), (other.y, other.dx, *other.gradients), strict=True):
            np.testing.assert_array_equal(mine, its)
    before = moving(made("ours", case, **options))
    after, its = (moving(layer) for layer in layers)
    for name in after:
        np.testing.assert_array_equal(after[name], its[name])
        assert (after[name] != before[name]).any()


@pytest.mark.parametrize("case", [TOGETHER["equal counts"], TOGETHER["uneven masks"]], ids=["whole", "masked"])
@pytest.mark.parametrize("options", ALONE.values(), ids=ALONE)
def test_in_one_process_the_option_changes_no_number(options: dict[str, Any], case: places.Case) -> None:
    assert_changes_nothing(options, case)


def test_the_option_is_saved_and_loaded(tmp_path: Path) -> None:
    layer = BatchNormalization(**START, synchronized=True)
    model = keras.Sequential([keras.Input((places.FEATURES,)), layer])
    x, dy, call = data(TOGETHER["equal counts"], 0)
    called(layer, x, dy, **call)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].synchronized is True
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


# --- TensorFlow: replicas of a strategy ----------------------------------------------------------------------------


@on_tensorflow
@pytest.mark.parametrize("name", TOGETHER)
def test_synchronized_replicas_are_one_process_with_all_samples(answers: dict[Any, Any], name: str) -> None:
    case = TOGETHER[name]
    layer = made("ours", case)
    for step, (calls, kept) in enumerate(answers["ours", name]):
        x, dy, call = data(case, step)
        assert_same_call(joined(calls), called(layer, x, dy, **call))
        for own in kept:
            assert_same_values(own, moving(layer))


@on_tensorflow
@pytest.mark.parametrize("name", APART)
def test_else_each_replica_normalises_its_own_batch_and_they_remember_the_mean(
    answers: dict[Any, Any], name: str
) -> None:
    case = APART[name]
    layers = [made("ours", case, synchronized=False) for _ in case.sizes]
    for step, (calls, kept) in enumerate(answers["ours", name]):
        alone = [called(layer, x, dy, **call) for layer, (x, dy, call) in zip(layers, parts(case, step), strict=True)]
        for mine, its in zip(calls, alone, strict=True):
            assert_same_call(mine, its)
        each = [moving(layer) for layer in layers]
        mean = {n: np.mean([m[n] for m in each], axis=0) for n in each[0]}
        for own, layer in zip(kept, layers, strict=True):
            assert_same_values(own, mean)
            assert all((own[n] == kept[0][n]).all() for n in own)
            for variable in layer.non_trainable_variables:
                variable.assign(mean[variable.name])


@on_tensorflow
def test_what_is_not_finite_on_one_replica_moves_the_statistics_of_none(answers: dict[Any, Any]) -> None:
    start = moving(made("ours", places.Case()))
    for own in answers["not finite"]:
        assert_same_values(own, start)


@on_tensorflow
@pytest.mark.parametrize("name", ["equal counts", "unequal counts", "images"])
def test_keras_own_layer_synchronizes_the_same(answers: dict[Any, Any], name: str) -> None:
    for (calls, kept), (its, its_kept) in zip(answers["ours", name], answers["keras", name], strict=True):
        assert_same_call(joined(calls), joined(its))
        for own, other in zip(kept, its_kept, strict=True):
            assert_same_values(own, other)


@on_tensorflow
@pytest.mark.parametrize("name", ["uneven masks", "a large mean"])
def test_where_keras_own_layer_is_not_one_process_with_all_samples(answers: dict[Any, Any], name: str) -> None:
    """Its mask ends the synchronization without a word; without one, its variance is E[x²] − E[x]²."""
    x, dy, call = data(TOGETHER[name], 0)
    truth = called(made("ours", TOGETHER[name]), x, dy, **call)
    ours, its = (joined(answers[kind, name][0][0]) for kind in ("ours", "keras"))
    assert_same_call(ours, truth)
    assert its.y.shape == truth.y.shape
    with pytest.raises(AssertionError):
        assert_same_to_project_bound(its.y, truth.y)


@on_tensorflow
def test_keras_own_layer_under_a_mask_is_as_if_it_were_not_synchronized(answers: dict[Any, Any]) -> None:
    synchronized, apart = answers["keras", "uneven masks"], answers["keras, apart", "uneven masks"]
    for (calls, _), (its, _) in zip(synchronized, apart, strict=True):
        assert_same_call(joined(calls), joined(its))


@on_tensorflow
def test_keras_own_layer_not_synchronized_remembers_another_thing_on_each_replica(answers: dict[Any, Any]) -> None:
    ours, keras_own = answers["ours", "not synchronized"], answers["keras, apart", "equal counts"]
    for (_, kept), (_, its) in zip(ours, keras_own, strict=True):
        assert all((kept[0][n] == kept[1][n]).all() for n in kept[0])
        assert all((its[0][n] != its[1][n]).all() for n in its[0])


def remembered_apart(x: Array) -> dict[str, Array]:
    """Return the moving statistics of `fit` where both halves of a batch remember their own, and share the mean."""
    mean, var = np.zeros(x.shape[-1]), np.ones(x.shape[-1])
    for batch in [x[i : i + BATCH].astype(np.float64) for i in range(0, len(x), BATCH)] * EPOCHS:
        halves = np.array_split(batch, places.REPLICAS)
        seen = [(h.mean(0), h.var(0)) if len(h) else (mean, var) for h in halves]
        mean, var = (
            MOMENTUM * old + (1.0 - MOMENTUM) * np.mean(new, axis=0)
            for old, new in zip((mean, var), zip(*seen, strict=True), strict=True)
        )
    return {"moving_mean": mean, "moving_variance": var}


@on_tensorflow
def test_fit_of_what_is_not_synchronized_remembers_the_mean_of_the_replicas(answers: dict[Any, Any]) -> None:
    found = answers["fit", "not synchronized"]
    x, _ = places.samples(FITS["not synchronized"])
    wanted = remembered_apart(x)
    assert_same_values({n: found[n] for n in wanted}, wanted)
    assert all(np.isfinite(value).all() for value in found.values())


# --- TensorFlow and JAX: fit ---------------------------------------------------------------------------------------

RAGGED = "synchronized, a ragged end"
WHOLE = [n for n in FITS if BACKEND == "jax" or n not in (RAGGED, "not synchronized")]


@pytest.mark.skipif(BACKEND == "torch", reason="Keras fits on one device of PyTorch")
@pytest.mark.parametrize("name", WHOLE)
def test_fit_over_devices_is_fit_on_one(answers: dict[Any, Any], name: str) -> None:
    _, alone = places.fitted(nullcontext(), FITS[name])
    assert_same_values(answers["fit", name], alone)
    assert (alone["moving_mean"] != 0.0).all()


@pytest.mark.skipif(BACKEND == "torch", reason="Keras fits on one device of PyTorch")
@pytest.mark.parametrize("name", WHOLE)
def test_a_model_fitted_over_devices_predicts_the_same_where_it_is_loaded(
    answers: dict[Any, Any], folder: Path, name: str
) -> None:
    loaded = keras.saving.load_model(folder / f"{name}.keras")
    x, _ = places.samples(FITS[name])
    assert_same_to_project_bound(loaded.predict(x[:BATCH], verbose=0), answers["fit", name]["predicted"])
    assert loaded.get_layer("norm").synchronized is FITS[name].options.get("synchronized", False)


@on_tensorflow
def test_a_last_batch_with_samples_for_one_replica_only_is_remembered(answers: dict[Any, Any]) -> None:
    """The statistics do not depend on the weights here; these do, on how Keras weighs the loss of an empty batch."""
    _, alone = places.fitted(nullcontext(), FITS[RAGGED])
    found = answers["fit", RAGGED]
    assert_same_values(*({n: a[n] for n in ("moving_mean", "moving_variance")} for a in (found, alone)))
    assert all(np.isfinite(value).all() for value in found.values())


@on_tensorflow
def test_keras_own_layer_fits_the_same(answers: dict[Any, Any]) -> None:
    assert_same_values(answers["fit", "synchronized"], answers["fit", "keras"])


@on_jax
@pytest.mark.parametrize("name", FITS)
def test_the_statistics_lie_on_every_device(answers: dict[Any, Any], name: str) -> None:
    assert answers["devices", name] == places.DEVICES


# --- PyTorch: processes --------------------------------------------------------------------------------------------


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    from torch import distributed

    distributed.init_process_group("gloo", init_method=(tmp_path / "meeting").as_uri(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[Any, Any]]:
    """What every process of a group has found, by its rank."""
    import torch

    from test_torch_distributed import finish

    finish(torch.multiprocessing.spawn(places.in_group, (folder,), places.PROCESSES, join=False), SECONDS)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(places.PROCESSES)]


@on_torch
@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("options", ALONE.values(), ids=ALONE)
def test_a_group_of_one_process_is_one_process(options: dict[str, Any]) -> None:
    assert_changes_nothing(options, TOGETHER["uneven masks"])


@on_torch
@pytest.mark.parametrize("rank", range(places.PROCESSES))
def test_training_in_several_processes_raises_and_remembers_nothing(found: list[dict[Any, Any]], rank: int) -> None:
    message = found[rank]["whole", "trained"]
    assert "`synchronized=True` over 2 processes of PyTorch is not built yet" in message
    assert "synchronized=False" in message
    assert_same_values(found[rank]["whole", "moving"], moving(made("ours", places.Case())))


@on_torch
@pytest.mark.parametrize("rank", range(places.PROCESSES))
def test_inference_in_several_processes_is_that_of_one(found: list[dict[Any, Any]], rank: int) -> None:
    layer = made("ours", places.Case())
    x, dy, _ = parts(places.Case(), 0)[rank]
    np.testing.assert_array_equal(found[rank]["whole", "inferred"], called(layer, x, dy, training=False).y)


@on_torch
@pytest.mark.parametrize("rank", range(places.PROCESSES))
def test_virtual_batches_in_several_processes_are_each_process_own(found: list[dict[Any, Any]], rank: int) -> None:
    layer = made("ours", places.Case(), virtual_batch_size=4)
    x, dy, call = parts(places.Case(), 0)[rank]
    assert_same_call(found[rank]["virtual", "trained"], called(layer, x, dy, **call))
    assert_same_values(found[rank]["virtual", "moving"], moving(layer))
