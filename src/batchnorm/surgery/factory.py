"""What people name on a command line: a factory of theirs, and files of weights."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from batchnorm.errors import ArgumentError
from batchnorm.surgery.flow import arguments

PICKLES = (".pt", ".pth", ".bin")
WEIGHTS = (".safetensors", *PICKLES)
PROGRAMS = (".onnx", ".pt2")


def load_factory(option: str, name: str) -> Callable[[], Any]:
    """Import `package.module:factory`, looking in the working directory too.

    Raises:
        ArgumentError: in one line, if it does not import or is not callable.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ArgumentError(f"`{option}` must be written package.module:factory, got {name!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ArgumentError(f"`{option} {name}` cannot be imported: {type(error).__name__}: {error}") from None
    if not callable(factory):
        raise ArgumentError(f"`{option} {name}` is not callable: {type(factory).__name__}")
    return factory


def call_factory(option: str, name: str) -> Any:
    """Import and call a factory; whatever it raises becomes one line."""
    factory = load_factory(option, name)
    try:
        return factory()
    except Exception as error:
        raise ArgumentError(f"`{option} {name}` failed: {type(error).__name__}: {error}") from None


def made_model(name: str, weights: Path | None) -> nn.Module:
    """Return the model of a factory, with the weights of a file.

    Raises:
        ArgumentError: in one line, if the factory makes none, or the file does not fit it.
    """
    model = call_factory("--model", name)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"`--model {name}` must return a torch.nn.Module, got {type(model).__name__}")
    if weights is not None:
        try:
            model.load_state_dict(read(weights))
        except RuntimeError as error:
            raise ArgumentError(
                f"{weights} does not fit `--model {name}`: {' '.join(str(error).split())[:400]}"
            ) from None
    return model


def read(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file: safetensors, or a checkpoint of tensors alone, never an arbitrary pickle.

    Raises:
        ArgumentError: if it cannot be read, or holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix not in PICKLES:
            raise ArgumentError(f"weights must be a file in {', '.join(WEIGHTS)}, got {path}")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except ArgumentError:
        raise
    except Exception as error:  # of whatever kind a damaged file brings about
        raise ArgumentError(f"{path} cannot be read as weights: {' '.join(str(error).split())[:300]}") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ArgumentError(f"{path} must hold a state_dict, tensors by name, got {type(found).__name__}")
    return found


def write(model: nn.Module, path: Path, example_inputs: Any = None) -> None:
    """Write the weights of a model, or by the ending .onnx or .pt2 the program that it is on such inputs.

    Raises:
        ArgumentError: if it cannot be written.
    """
    args, kwargs = arguments(example_inputs)
    try:
        if path.suffix == ".onnx":
            torch.onnx.export(model, args, path, kwargs=kwargs, dynamo=True, verbose=False)
        elif path.suffix == ".pt2":
            torch.export.save(torch.export.export(model, args, kwargs), path)
        elif path.suffix == ".safetensors":
            save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, path)
        else:
            torch.save(model.state_dict(), path)
    except Exception as error:  # of an exporter, a disk, a library that is not there
        why = " ".join(str(error).split())[:400]
        raise ArgumentError(f"{path} cannot be written: {type(error).__name__}: {why}") from None
