"""Hugging Face' transformers and accelerate: models that are built empty and filled tensor by tensor."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from check import CHECKS, Check, check, require, torch_first
from compare import alike, all_ours, layers, ours, pictures, same_inference, same_step, small, stirred
from torch import nn

from batchnorm.torch import BatchNorm1d, BatchNorm2d, BatchNorm3d

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet": ("ResNetModel", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}),
    "MobileNetV2": ("MobileNetV2Model", {"depth_multiplier": 0.25, "image_size": 64}),
    "RegNet": ("RegNetModel", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8}),
    "EfficientNet": ("EfficientNetModel", {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}),
    "LeViT": (
        "LevitModel",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [1, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 3, 4, 2, 2]],
        },
    ),
}


@contextmanager
def our_classes() -> Iterator[None]:
    """Put our classes in the place of torch's, as a program does that swaps the import."""
    with mock.patch.multiple(nn, BatchNorm1d=BatchNorm1d, BatchNorm2d=BatchNorm2d, BatchNorm3d=BatchNorm3d):
        yield


def calm(model: nn.Module) -> None:
    """Require that no layer claims to have met a batch with inf or NaN."""
    told = [repr(layer) for layer in layers(model) if "nonfinite" in repr(layer)]
    require(not told, f"{len(told)} layers claim bad batches: {told[:1]}")


def _of(model: str) -> tuple[Any, Any]:
    import transformers

    kind = getattr(transformers, MODELS[model][0])
    return kind, lambda: kind(kind.config_class(**MODELS[model][1]))


def pretrained(name: str) -> str:
    """Save with torch's layers, load with ours; save these, and load with torch's."""
    kind, make = _of(name)
    torch.manual_seed(0)
    model = stirred(make()).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with our_classes():
            other, told = kind.from_pretrained(folder, output_loading_info=True)
        require(not any(told.values()), f"loaded with {told}")
        count = all_ours(other)
        calm(other)
        other.save_pretrained(f"{folder}/again")
        again, told = kind.from_pretrained(f"{folder}/again", output_loading_info=True)
        require(not any(told.values()), f"saved, and loaded into torch's with {told}")
        with our_classes():
            twice = kind.from_pretrained(f"{folder}/again")
    states = [one.state_dict() for one in (model, other, again, twice)]
    for state in states[1:]:
        require([*state] == [*states[0]], f"the state_dict has other names: {set(state) ^ set(states[0])}")
        require(all(torch.equal(a, b) for a, b in zip(state.values(), states[0].values(), strict=True)), "other state")
    x = torch.randn(4, 3, 64, 64)

    def run(one: nn.Module, cast: Callable[[Any], Any]) -> Any:
        return one(cast(x)).last_hidden_state

    with torch_first(), torch.no_grad():
        run(model, lambda x: x)
    told = f"{count} layers, {same_inference(model, other, run)}, {same_step(model, other, run)}"
    calm(other.train())
    return told


for _name in MODELS:
    CHECKS.append(Check(f"transformers/{_name}/from_pretrained", partial(pretrained, _name), ("transformers",)))


def _filled(make: Callable[[], nn.Module]) -> str:
    """Fill a model that was built without memory from a checkpoint of torch's, and compare."""
    from accelerate import load_checkpoint_and_dispatch
    from safetensors.torch import save_file

    model = small()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file(model.state_dict(), file)
        other = load_checkpoint_and_dispatch(make(), str(file), device_map={"": "cpu"})
    other.eval()
    calm(other)
    told = same_inference(model, other, lambda one, cast: one(cast(pictures())))
    other.train()(pictures())
    other.state_dict()
    calm(other)
    return f"{all_ours(other)} layers, {told}"


@check("accelerate/init_empty_weights/our classes", "accelerate")
def empty() -> str:
    from accelerate import init_empty_weights

    def make() -> nn.Module:
        with our_classes(), init_empty_weights(include_buffers=True):
            return small()

    return _filled(make)


@check("accelerate/init_empty_weights/convert", "accelerate")
def empty_converted() -> str:
    from accelerate import init_empty_weights

    def make() -> nn.Module:
        with init_empty_weights(include_buffers=True):
            return ours(small())

    return _filled(make)


def _offloaded(offload: Callable[[nn.Module], Any]) -> str:
    model = small()
    other = ours(model)
    offload(other)
    with torch.no_grad():
        told = alike(other(pictures()), model(pictures()), "output")
        torchs = copy.deepcopy(model)
        offload(torchs)
        torchs.train()(pictures())
        other.train()(pictures())
        told += ", " + alike(other.eval()(pictures()), torchs.eval()(pictures()), "output after a training step")
    calm(other)
    return told


@check("accelerate/offload/cpu", "accelerate")
def offload_cpu() -> str:
    from accelerate import cpu_offload

    return _offloaded(lambda model: cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True))


@check("accelerate/offload/disk", "accelerate")
def offload_disk() -> str:
    from accelerate import disk_offload

    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(9))

        def offload(model: nn.Module) -> None:
            place = f"{folder}/{next(numbers)}"
            disk_offload(model, place, execution_device=torch.device("cpu"), offload_buffers=True)

        return _offloaded(offload)
