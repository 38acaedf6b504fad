"""Where layers hang in a model: one walk for all tools, in which a shared module is one layer with several names."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.parameter import is_lazy

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.torch.naming import shorten

One = str | nn.Module | type[nn.Module]
Layers = One | Iterable[One] | Callable[[str, nn.Module], bool]
P = ParamSpec("P")
R = TypeVar("R")


def trainable(tool: Callable[P, R]) -> Callable[P, R]:
    """Let a tool whose first argument is a model make tensors that can be trained, under inference mode too.

    Unless the model itself is of tensors made in that mode: these can only be changed in it.
    """

    @wraps(tool)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given: Any = args[0] if args else kwargs.get("model")
        tensors = [*given.parameters(), *given.buffers()] if isinstance(given, nn.Module) else []
        with torch.inference_mode(torch.is_inference_mode_enabled() and any(t.is_inference() for t in tensors)):
            return tool(*args, **kwargs)

    return run


def is_frozen_class(module: Any) -> bool:
    """Return whether it is a FrozenBatchNorm2d, of torchvision, timm or others: of buffers alone."""
    named = any(kind.__name__.startswith("FrozenBatchNorm") for kind in type(module).__mro__)
    parts = ("weight", "bias", "running_mean", "running_var")
    return named and all(isinstance(getattr(module, part, None), torch.Tensor) for part in parts)


def is_normalization(module: Any) -> bool:
    """Return whether it is a layer of batch normalization: torch's, ours, timm's, or one frozen for good."""
    return isinstance(module, _BatchNorm) or is_frozen_class(module)


def scripted(model: nn.Module) -> list[str]:
    """Return the names of layers of batch normalization that are TorchScript, and cannot be reached."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    return [name for name, module in found if "BatchNorm" in getattr(module, "original_name", "")]


def epsilon(layer: Any) -> float:
    """Return ε of a layer; of a frozen one that has none as an attribute, the 1e-5 that its forward has."""
    return getattr(layer, "eps", 1e-5)


class Place(NamedTuple):
    """A module and where it hangs.

    Attributes:
        module: It.
        names: Everywhere it can be reached, first the one that PyTorch reports; "" is the model itself.
    """

    module: nn.Module
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the first name, or the class where it is the model itself."""
        return self.names[0] or type(self.module).__name__


def places(model: nn.Module, wanted: Callable[[nn.Module], bool] = lambda _: True) -> list[Place]:
    """Return each wanted module once, in the order of the model, with all of its names.

    Raises:
        ArgumentError: if `model` is none whose parts can be reached.

    >>> relu = nn.ReLU()
    >>> [place.names for place in places(nn.Sequential(nn.Linear(2, 2), relu, relu))]
    [('',), ('0',), ('1', '2')]
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError("`model` is TorchScript, whose layers cannot be reached: give the module it was made from")
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise ArgumentError(f"`model` must be a torch.nn.Module, got {kind}")
    found: dict[int, Place] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if wanted(module):
            names = found[id(module)].names if id(module) in found else ()
            found[id(module)] = Place(module, (*names, name))
    return list(found.values())


def chosen(found: Sequence[Place], layers: Layers | None, option: str = "layers") -> list[Place]:
    """Return those that are named: names with wildcards, modules, classes, or a predicate of name and module.

    Raises:
        ArgumentError: if one of them is none of what was found.
    """
    if layers is None:
        return list(found)
    single = isinstance(layers, str | nn.Module | type)
    if callable(layers) and not single:
        return [place for place in found if layers(place.names[0], place.module)]
    if not single and not isinstance(layers, Iterable):
        raise ArgumentError(f"`{option}` must be names, modules, classes or a predicate, got {layers!r}")
    kept: set[int] = set()
    for one in (layers,) if single else layers:
        those = [place for place in found if _is(place, one)]
        if not those:
            there = shorten([place.name for place in found]) or "none"
            raise ArgumentError(f"`{option}` names {_written(one)}, which is no layer to choose (there are: {there})")
        kept |= {id(place.module) for place in those}
    return [place for place in found if id(place.module) in kept]


def _is(place: Place, one: One) -> bool:
    if isinstance(one, str):
        return any(fnmatchcase(name, one) for name in place.names)
    return isinstance(place.module, one) if isinstance(one, type) else place.module is one


def _written(one: Any) -> str:
    return repr(one) if isinstance(one, str) else (one if isinstance(one, type) else type(one)).__name__


def require_numbers(model: nn.Module) -> None:
    """Refuse a model that cannot run yet.

    Raises:
        BatchNormError: if parameters are lazy, or on the meta device.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise BatchNormError(f"{name} does not know its shape yet: run the model once")
        if tensor.is_meta:
            raise BatchNormError(f"{name} is on the meta device, where tensors have no numbers: load the weights first")


@contextmanager
def uncompiled(model: nn.Module) -> Generator[None]:
    """Run the model as Python does while its layers are listened to, though it may have been compiled."""
    compiled: Any = [m for m in model.modules() if hasattr(m, "_orig_mod") or m._compiled_call_impl is not None]  # pyright: ignore
    if compiled:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:  # which spares the import of the compiler
        yield


def put(model: nn.Module, place: Place, new: nn.Module) -> nn.Module:
    """Put a module in the place of another, under all of its names; return the model, which is `new` at the top."""
    for name in place.names:
        if not name:
            return new
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = new  # pyright: ignore[reportPrivateUsage]
    return model
