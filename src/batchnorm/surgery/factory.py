"""What people name on a command line: a factory of theirs, and files of weights and programs."""

import argparse
import codecs
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_unflatten

from batchnorm.errors import ArgumentError, MissingExtraError
from batchnorm.outputs import told, written
from batchnorm.surgery.flow import arguments
from batchnorm.torch.naming import shorten

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
WEIGHTS = (".safetensors", *PICKLES)
PROGRAMS = (".onnx", ".pt2")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel and AveragedModel, torch.compile, Lightning
COUNTER = "n_averaged"  # of AveragedModel
ONE_FILE = 2**30  # bytes of weights that an .onnx holds itself; protobuf ends at twice that
_SCALAR = np._core.multiarray.scalar  # pyright: ignore
HARMLESS: list[Any] = [  # what may lie beside tensors in a checkpoint, and runs nothing
    argparse.Namespace, np.dtype, codecs.encode, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"),
    *{type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"},
]  # fmt: skip


def named(option: str, name: str) -> Any:
    """Import `package.module:name`, looking in the working directory too.

    Raises:
        ArgumentError: in one line, if it does not import.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ArgumentError(f"`{option}` must be written package.module:factory, got {name!r}")
    if module_name.endswith(".py"):
        module = ".".join(Path(module_name).with_suffix("").parts)
        raise ArgumentError(f"`{option}` names a module, not its file: write {module}:{attribute}, got {name!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: its files are not to stand in for modules of others
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # whatever the user's module raises while it is imported
        raise ArgumentError(f"`{option} {name}` cannot be imported: {told(error)}") from None


def load_factory(option: str, name: str) -> Callable[..., Any]:
    """Import a function.

    Raises:
        ArgumentError: in one line, if it does not import or is not callable.
    """
    factory = named(option, name)
    if not callable(factory):
        raise ArgumentError(f"`{option} {name}` is not callable: {type(factory).__name__}")
    return factory


def call_factory(option: str, name: str, *, once: bool = False) -> Any:
    """Import a factory and call it; what is no function is taken as it is.

    Args:
        option: Of the command line, for messages.
        name: `package.module:name`.
        once: Whether a module is taken as it is too: not where each call must make a new one.

    Raises:
        ArgumentError: in one line, whatever the factory raises.
    """
    factory = named(option, name)
    if not callable(factory) or (once and isinstance(factory, nn.Module)):
        return factory
    if isinstance(factory, nn.Module):
        kind = type(factory).__name__
        raise ArgumentError(f"`{option} {name}` must be a function that returns a new one in each call, got a {kind}")
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise ArgumentError(f"`{option} {name}` failed: {told(error)}") from None


def made_model(
    name: str, weights: Path | None, device: str | None = None, *, key: str | None = None, prefix: str | None = None
) -> nn.Module:
    """Return the model that is named, with the weights of a file, on a device.

    Args:
        name: `package.module:name`.
        weights: The file.
        device: None: where the model is.
        key: Of the state_dict in the file, where it holds several; with dots between where one lies in another.
        prefix: With which the names of its weights begin; others are left out.

    Raises:
        ArgumentError: in one line, if there is none, the file does not fit it, or the device is not there.
    """
    model = call_factory("--model", name, once=True)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"`--model {name}` must return a torch.nn.Module, got {type(model).__name__}")
    if weights is None and (key or prefix):
        raise ArgumentError("`--key` and `--prefix` choose among the weights of a file: give `--weights` too")
    if weights is not None:
        state = _behind(prefix, read(weights, key), weights)
        if faults := _load(model, state):
            before = _prefix_of(model, state)
            way_out = f"; --prefix {before} takes those that do" if before else ""
            raise ArgumentError(f"{weights} does not fit `--model {name}`: {'; '.join(faults)}{way_out}")
    try:
        return model if device is None else model.to(torch.device(device))
    except Exception as error:  # of whatever kind a device brings about
        raise ArgumentError(f"`--device {device}` cannot be used: {told(error)}") from None


def _load(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Load weights, and return what of them does not fit."""
    own = model.state_dict()
    state = _fitted(state, own.keys())
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        sizes = [
            f"{name} is {tuple(value.shape)} in place of {tuple(own[name].shape)}"
            for name, value in state.items()
            if name in own and value.shape != own[name].shape
        ]
        return [shorten(sizes) or told(error)]
    return [f"{kind} {shorten(names)}" for kind, names in (("missing", missing), ("unexpected", unexpected)) if names]


def _fitted(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Exchange the prefixes of wrappers for those that the model's own keys have."""
    if COUNTER not in own:
        state.pop(COUNTER, None)
    given, wanted = _wrapping(state), _wrapping(own)
    consume_prefix_in_state_dict_if_present(state, given)
    return {name if name == COUNTER else wanted + name: value for name, value in state.items()} if wanted else state


def _wrapping(names: Collection[str]) -> str:
    """Return the prefixes of wrappers that all names begin with."""
    inner, found = {*names} - {COUNTER}, ""
    while inner and (more := [p for p in PREFIXES if all(name.startswith(found + p) for name in inner)]):
        found += more[0]
    return found


def _behind(prefix: str | None, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the weights whose names begin with a prefix, without it."""
    if not prefix:
        return state
    if any(name.startswith(f"{prefix}.") for name in state):
        prefix = f"{prefix}."
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not inner:
        raise ArgumentError(f"no weight in {path} begins with `--prefix {prefix}`, there are {shorten([*state])}")
    return inner


def _prefix_of(model: nn.Module, state: dict[str, Tensor]) -> str:
    """Return with what the names of the weights of a model begin in a state_dict that holds others too; "" for none."""
    own = [*model.state_dict()]
    found = [name.removesuffix(own[0]) for name in state if own and name.endswith(own[0])]
    return next((before for before in found if before and all(before + name in state for name in own)), "")


def read(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Return the weights of a file: safetensors, or a checkpoint of tensors alone, never an arbitrary pickle.

    Beside tensors it may hold what training scripts put there: numbers of NumPy, and the arguments of argparse.

    Raises:
        ArgumentError: if it cannot be read, or does not hold just one state_dict, and none has this key.
    """
    if path.suffix.lower() not in WEIGHTS:
        raise ArgumentError(f"weights must be a file in {', '.join(WEIGHTS)}, got {path}")
    return _state_in(_content(path), path, key)


def _state_in(found: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    """Return the one state_dict in what a file holds, or that of a key."""
    whole = isinstance(found, dict) and key in [str(name) for name in found]  # with dots in it
    for name in () if key is None else (key,) if whole else key.split("."):
        inside = [str(one) for one in found] if isinstance(found, dict) else []
        if name not in inside:
            raise ArgumentError(
                f"`--key {key}` is not in {path}: there is {shorten(inside) or 'nothing'} and no {name}"
            )
        found = found[name]
    if _is_state(found):
        return found
    if not isinstance(found, dict):
        raise ArgumentError(f"{path} must hold a state_dict, tensors by name, got {type(found).__name__}")
    inside = {str(name): value for name, value in found.items() if _is_state(value)}
    for name, value in found.items():
        deeper = value if isinstance(value, Mapping) and str(name) not in inside else {}
        inside |= {f"{name}.{key}": one for key, one in deeper.items() if _is_state(one)}
    if len(inside) > 1:
        raise ArgumentError(f"{path} holds several state_dicts, {', '.join(inside)}: choose one, --key {[*inside][-1]}")
    if not inside:
        keys = shorten([str(name) for name in found]) or "no keys"
        raise ArgumentError(f"{path} must hold a state_dict, tensors by name, got a dict with {keys}")
    return next(iter(inside.values()))


def _content(path: Path) -> Any:
    """Return what a file of weights holds: of a checkpoint nothing that could run code."""
    if path.is_fifo():
        raise ArgumentError(f"{path} is a pipe, and weights are read here and there in their file: write them to one")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        # Warnings are about files that are refused below.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of whatever kind a damaged file brings about
        raise ArgumentError(f"{path} {_unread(path, error)}") from None


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(one, Tensor) for name, one in value.items())


def _unread(path: Path, error: Exception) -> str:
    """Return why a file is not read; not in torch's own words where they say how to run what it brings."""
    if "weights_only" not in str(error):
        return f"cannot be read as weights: {told(error)}"
    with path.open("rb") as file:
        if file.read(1) in (b"P", b"\x80"):  # with which zip files and pickles begin
            return (
                "holds objects beyond tensors, which are not loaded, as a pickle can run code: save "
                "`model.state_dict()` instead"
            )
    return f"cannot be read as weights: {type(error).__name__}, as it is damaged or no checkpoint"


def check_exporter(path: Path) -> None:
    """Refuse an .onnx where there is nothing to write it with, before the work is done.

    Raises:
        MissingExtraError: then.
    """
    for library in ("onnxscript", "onnx") if path.suffix.lower() == ".onnx" else ():
        if find_spec(library) is None:
            raise MissingExtraError(f"batchnorm fold --out {path.name}", library, "onnx")


def write(model: nn.Module, path: Path, example_inputs: Any = None) -> list[str]:
    """Write the weights of a model, or by the ending .onnx or .pt2 the program that it is on such inputs.

    Returns:
        Lines that say which files these are, and what to know of them.

    Raises:
        ArgumentError: if it cannot be written.
    """
    with written("--out", path) as draft:
        notes = (_write_program if path.suffix.lower() in PROGRAMS else _write_weights)(model, draft, example_inputs)
        names = sorted(file.name for file in draft.parent.iterdir())
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    files = [path if name == path.name else place.with_name(name) for name in names]
    return [*(f"wrote {file} ({decimal(file.stat().st_size)})" for file in files), *notes]


class _Sink(io.RawIOBase):
    """A file that keeps an error of its disk for later: raised into the C++ of torch, it would end the process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file, self._failure = path.open("wb"), None

    def write(self, data: Any) -> int:
        """Write, or do as if, once that has failed."""
        size = memoryview(data).nbytes
        if self._failure is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._failure = error
        return size

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Close the file; raise what has failed."""
        if self.closed:
            return
        super().close()
        try:
            self._file.close()
        except OSError as error:
            self._failure = self._failure or error
        if self._failure is not None:
            raise self._failure


def _write_weights(model: nn.Module, path: Path, _: Any = None) -> list[str]:
    """Write weights from the CPU, so that they load where there is no other device."""
    state = model.state_dict()
    for name, value in state.items():
        state[name] = value.cpu() if isinstance(value, Tensor) else value
    if path.suffix.lower() == ".safetensors":
        save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    else:
        with _Sink(path) as sink:
            torch.save(state, sink)  # pyright: ignore[reportArgumentType]
    return []


def _write_program(model: nn.Module, path: Path, example_inputs: Any) -> list[str]:
    """Export a model; return what to know of the program."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec", FutureWarning)  # of torch, by torch
        program = _exported(model, example_inputs)
        if path.suffix.lower() == ".pt2":
            held = io.BytesIO()  # torch would end the process where the disk is full
            torch.export.save(program, held)
            path.write_bytes(held.getbuffer())
        else:
            large = sum(value.nbytes for value in program.state_dict.values()) > ONE_FILE
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False, dynamic_shapes=_free_axes(program))
            _name(made.model.graph, program)
            made.save(path, external_data=large)
            _check_program(path)
    return [*_fixed_batch(program, example_inputs), *_of_float64(program, path)]


def _check_program(path: Path) -> None:
    """Refuse an .onnx that no runtime takes."""
    import onnx

    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:  # of whatever kind the checker raises
        raise ArgumentError(
            f"the exporter made no valid ONNX of the model (a model in bfloat16? model.float() first): {told(error)}"
        ) from None


def _of_float64(program: Any, path: Path) -> list[str]:
    if path.suffix.lower() != ".onnx" or all(v.dtype != torch.float64 for v in program.state_dict.values()):
        return []
    return ["note: the program is in float64, for which onnxruntime has no convolutions: model.float() makes another"]


def _taken(program: Any) -> dict[str, Tensor]:
    """Return the tensors that a program takes, by the names of the model's arguments."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    given = {name: values.get(name) for name in program.graph_signature.user_inputs}
    return {name: value for name, value in given.items() if isinstance(value, Tensor)}


def _free_axes(program: Any) -> list[dict[int, str]]:
    """Return for each tensor that a program takes what its first axis is called where it is free: "batch"."""
    called: set[str] = set()
    axes: list[dict[int, str]] = []
    for name, value in _taken(program).items():
        free = value.ndim > 0 and isinstance(value.shape[0], torch.SymInt)
        new = free and str(value.shape[0]) not in called  # inputs of one batch share its name
        axes.append({0: f"batch_{name}" if called else "batch"} if new else {})
        called |= {str(value.shape[0])} if new else set()
    return axes


def _name(graph: Any, program: Any) -> None:
    """Call the inputs of an ONNX graph as the model does, and the outputs by the keys of a dictionary, or "output"."""
    returned = tree_unflatten(list(program.graph_signature.user_outputs), program.call_spec.out_spec)
    places = [keystr(path) for path, name in tree_flatten_with_path(returned)[0] if name is not None]
    keys = [re.sub(r"\W+", "_", place).strip("_") for place in places]
    results = [key if key and not key[0].isdigit() else f"output_{key}".rstrip("_") for key in keys]
    values = {value.name: value for value in [*graph.inputs, *(one for node in graph for one in node.outputs)]}
    given = set(graph.initializers)
    made = [(value, name) for value, name in zip(graph.outputs, results, strict=False) if value.producer() is not None]
    for value, name in [*zip(graph.inputs, _taken(program), strict=False), *made]:
        while name in given:
            name = f"{name}_out"
        given.add(name)
        other = values.get(name, value)
        other.name, value.name = value.name, name  # each name once
        values |= {other.name: other, name: value}


def _exported(model: nn.Module, example_inputs: Any) -> Any:
    """Return the program of a model, whose first axis of each input is free where the model allows it."""
    args, kwargs = arguments(example_inputs)
    free = torch.export.ShapesCollection()
    for one in tree_leaves((args, kwargs)):
        if isinstance(one, Tensor) and one.ndim and one.shape[0] > 1:  # of 1, torch.export makes a constant
            free[one] = {0: torch.export.Dim.AUTO}
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=free.dynamic_shapes(model, args, kwargs))
    except Exception:  # what cannot be free at all, **kwargs say
        return torch.export.export(model, args, kwargs)


def _fixed_batch(program: Any, example_inputs: Any) -> list[str]:
    """Return a note where no axis of a program is free."""
    sizes = [one.shape[0] for one in tree_leaves(example_inputs) if isinstance(one, Tensor) and one.ndim]
    if program.range_constraints or not sizes:
        return []
    way_out = ": give example inputs of 2 or more to leave it free" if sizes[0] == 1 else ""
    return [f"note: the program takes a batch of {sizes[0]} only{way_out}"]
