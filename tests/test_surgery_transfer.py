"""A layer's state in another framework gives the same outputs, and goes on training alike."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import transferring
from batchnorm.errors import ArgumentError, ShapeError
from batchnorm.surgery import transfer
from batchnorm.torch import BatchNorm, Renorm, frozen
from tolerance import TRANSFERRED, TRANSFERRED_AND_TRAINED

TOGETHER = ["torch", "batchnorm", "keras", "tf_keras", "nnx", "linen", "haiku"]


def test_between_frameworks() -> None:
    """One process for all pairs, as each worker would load every framework anew."""
    script = Path(__file__).parent / "transferring.py"
    given = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    ran = subprocess.run([sys.executable, script, *TOGETHER], env=given, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = [line.split("\t")[1:] for line in ran.stdout.splitlines() if line.startswith("found\t")]
    expected = [*transferring.cases(TOGETHER), ("tf_keras", "batchnorm", "images")]
    assert [(source, target, case) for source, target, *_, case in found] == expected
    for source, target, inference, trained, there_and_back, case in found:
        apart = f"{source} → {target}, {case}: {inference} {trained} {there_and_back}"
        assert float(inference) <= TRANSFERRED, apart
        assert float(trained) <= TRANSFERRED_AND_TRAINED, apart
        assert float(there_and_back) <= TRANSFERRED_AND_TRAINED, apart


ARRAYS = [np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([5.0, 6.0]), np.array([7.0, 8.0])]


def test_names_shapes_and_order() -> None:
    layer = nn.BatchNorm1d(2)
    names = ("weight", "bias", "running_mean", "running_var")
    arrays = {name: torch.from_numpy(array) for name, array in zip(names, ARRAYS, strict=True)}
    layer.load_state_dict({**arrays, "num_batches_tracked": torch.tensor(9)})
    keras = transfer(layer, "torch", "keras", count=8)
    assert [w.tolist() for w in keras.state] == [[1, 2], [3, 4], [5, 6], [6.125, 7]]  # times 7/8: the biased variance
    assert keras.config == {"axis": -1, "momentum": 0.9, "epsilon": 1e-5, "scale": True, "center": True}
    linen = transfer(layer, "torch", "linen").state
    assert {k: sorted(v) for k, v in linen.items()} == {"params": ["bias", "scale"], "batch_stats": ["mean", "var"]}
    haiku = transfer(layer, "torch", "haiku")
    assert haiku.state["state"]["batch_norm/~/mean_ema"]["average"].tolist() == [[5, 6]]
    assert haiku.state["params"]["batch_norm"]["scale"].shape == (1, 2)
    assert haiku.config["decay_rate"] == pytest.approx(0.9)
    back = transfer(haiku.state, "haiku", "torch", config={"decay_rate": 0.9}).state
    assert {n: v.tolist() for n, v in back.items() if n != "num_batches_tracked"} == {
        n: v.tolist() for n, v in layer.state_dict().items() if n != "num_batches_tracked"
    }
    linen_back = transfer(linen, "linen", "nnx").state
    assert linen_back["var"].tolist() == [7, 8]


def test_it_prints_shapes() -> None:
    said = str(transfer(ARRAYS, "keras", "nnx", config={"epsilon": 0.5}))
    assert said.splitlines() == [
        "state: {'scale': '(2,)', 'bias': '(2,)', 'mean': '(2,)', 'var': '(2,)'}",
        "config: num_features=2, axis=-1, momentum=0.99, epsilon=0.5, use_scale=True, use_bias=True",
    ]


def test_variances_are_told_apart() -> None:
    assert "give `count`" in transfer(nn.BatchNorm1d(2), "torch", "keras").notes[0]
    ours = transfer(ARRAYS, "keras", "batchnorm")
    assert ours.config["running_variance"] == "biased"
    assert (ours.notes, ours.state["running_var"].tolist()) == ([], [7, 8])
    fused = transfer(ARRAYS, "tf_keras", "batchnorm", config={"fused": True})
    assert fused.config["running_variance"] == "unbiased"
    assert transfer(ARRAYS, "keras", "torch", count=8).state["running_var"].tolist() == [8, pytest.approx(64 / 7)]


def test_ghost_and_haiku_shapes_are_flattened() -> None:
    ghost = [a.reshape(1, 1, 2) for a in ARRAYS]
    assert transfer(ghost, "tf_keras", "batchnorm").state["weight"].shape == (2,)
    with pytest.raises(ShapeError, match=r"\(2, 2\)"):
        transfer([np.ones((2, 2))] * 4, "keras", "torch")


def test_what_is_not_there() -> None:
    found = transfer(ARRAYS[:3], "keras", "torch", config={"center": False})
    assert (found.config["affine"], found.config["bias"]) == (True, False)
    BatchNorm(**transfer(ARRAYS[:3], "keras", "batchnorm", config={"center": False}).config).load_state_dict(
        found.state
    )
    plain = transfer(nn.BatchNorm1d(2, affine=False), "torch", "nnx")
    assert sorted(plain.state) == ["mean", "var"]
    assert (plain.config["use_scale"], plain.config["use_bias"]) == (False, False)


def test_renormalization() -> None:
    layer = BatchNorm(2, renorm=Renorm(rmax=2.0, dmax=0.5, momentum=0.3))
    layer(torch.randn(8, 2))
    classic = transfer(layer, "batchnorm", "tf_keras")
    assert (len(classic.state), classic.config["renorm"], classic.config["renorm_momentum"]) == (7, True, 0.7)
    assert classic.config["renorm_clipping"] == {"rmax": 2.0, "dmax": 0.5}
    back = transfer(classic.state, "tf_keras", "batchnorm", config=classic.config)
    assert back.state["renorm_mean"].tolist() == layer.renorm_mean.tolist()
    assert BatchNorm(**back.config).renorm == layer.renorm
    dropped = transfer(layer, "batchnorm", "keras", count=8)
    assert (len(dropped.state), "is no part of keras" in dropped.notes[0]) == (4, True)
    assert dropped.state[3].tolist() == layer.running_var.tolist()  # renormalization remembers the biased variance
    torchs = transfer(layer, "batchnorm", "torch", count=8).state
    assert torchs["running_var"].tolist() == pytest.approx((layer.running_var * 8 / 7).tolist())


def test_what_keras_layers_were_asked_for() -> None:
    asked = {"synchronized": True, "virtual_batch_size": 4, "activation": "relu"}
    config = transfer(ARRAYS, "keras", "batchnorm", config=asked).config
    assert (config["sync"], config["virtual_batch_size"], config["activation"]) == (True, 4, "relu")
    assert "virtual_batch_size=4 is no part of torch's layer" in transfer(ARRAYS, "keras", "torch", config=asked).notes


def test_what_goes_on_otherwise_is_told() -> None:
    assert "no β alone" in transfer(ARRAYS[1:], "keras", "torch", config={"scale": False}, count=9).notes[0]
    haiku = transfer(ARRAYS, "keras", "haiku")
    assert not transfer(haiku.state, "haiku", "nnx").notes
    haiku.state["state"]["batch_norm/~/mean_ema"]["counter"] = np.int32(3)
    assert "after 3 batches Haiku still weighs" in transfer(haiku.state, "haiku", "nnx").notes[0]


@pytest.mark.parametrize(
    ("state", "source", "target", "says"),
    [
        (ARRAYS, "keras", "caffe", "got 'caffe'"),
        (ARRAYS[:3], "keras", "torch", "got 3 arrays"),
        ("weights.npz", "keras", "torch", "got str"),
        (nn.BatchNorm1d(2), "keras", "torch", "got BatchNorm1d"),
        (nn.Sequential(nn.BatchNorm1d(2)), "torch", "keras", "got Sequential"),
        ({"gamma": ARRAYS[0]}, "torch", "keras", "got gamma"),
        ({"kernel": ARRAYS[0]}, "nnx", "keras", "got kernel"),
    ],
)
def test_refusals(state: Any, source: str, target: str, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        transfer(state, source, target)


def test_words_that_a_layer_does_not_know() -> None:
    for source, config in (
        ("keras", {"eps": 1e-5, "mometum": 0.9}),
        ("haiku", {"epsilon": 1.0}),
        ("torch", {"axis": 1}),
    ):
        with pytest.raises(ArgumentError, match=f"arguments of {source}'s layer, got '{next(iter(config))}'"):
            transfer(ARRAYS, source, "torch", config=config)


def test_frozen_layers_are_told() -> None:
    layer = BatchNorm(2)
    frozen(layer).apply()
    assert "frozen" in transfer(layer, "batchnorm", "torch").notes[0]
    assert "frozen" in transfer(ARRAYS, "keras", "batchnorm", config={"trainable": False}).notes[0]


def test_a_cumulative_average_has_no_momentum_elsewhere() -> None:
    found = transfer(nn.BatchNorm1d(2, momentum=None), "torch", "keras", count=5)
    assert found.config["momentum"] == pytest.approx(0.9)
    assert "momentum=None" in found.notes[0]


def test_options_go_along_or_are_told() -> None:
    layer = BatchNorm(2, activation="relu", axis=-1, momentum=None)
    ours = transfer(layer, "batchnorm", "batchnorm")
    assert (ours.config["activation"], ours.config["axis"], ours.config["momentum"], ours.notes) == (
        "relu",
        -1,
        None,
        [],
    )
    told = " ".join(transfer(layer, "batchnorm", "keras", count=9).notes)
    for said in ("activation='relu'", "axis=-1", "momentum=None"):
        assert said in told
    renormed = BatchNorm(2, renorm=Renorm(rmax=2.0))
    found = transfer(renormed, "batchnorm", "batchnorm")
    assert BatchNorm(**found.config).renorm == Renorm(rmax=2.0)
    assert transfer(BatchNorm(2).bfloat16(), "batchnorm", "nnx", count=9).state["scale"].dtype == np.float32


@pytest.mark.parametrize("target", ["torch", "keras", "nnx", "linen", "haiku"])
def test_without_statistics_there_is_nothing_to_transfer(target: str) -> None:
    with pytest.raises(ArgumentError, match="keeps no running statistics"):
        transfer(nn.BatchNorm1d(2, track_running_stats=False), "torch", target)


def test_what_does_not_fit_together() -> None:
    with pytest.raises(ShapeError, match="one length"):
        transfer([np.ones(2), np.ones(2), np.ones(3), np.ones(2)], "keras", "torch")
    for count in (1, -3, "8"):
        with pytest.raises(ArgumentError, match="`count` must be more than 1"):
            transfer(ARRAYS, "keras", "torch", count=count)  # type: ignore[arg-type]
    for state, source in (([1, 2], "torch"), ({"params": {}}, "haiku"), ({"params": {}, "state": {}}, "haiku")):
        with pytest.raises(ArgumentError):
            transfer(state, source, "keras")
