"""Where layers hang in a model: one walk for all tools, in which a shared module is one layer with several names."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from batchnorm.errors import ArgumentError

Layers = str | nn.Module | Iterable[str | nn.Module] | Callable[[str, nn.Module], bool]


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

    >>> relu = nn.ReLU()
    >>> [place.names for place in places(nn.Sequential(nn.Linear(2, 2), relu, relu))]
    [('',), ('0',), ('1', '2')]
    """
    found: dict[int, Place] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if wanted(module):
            names = found[id(module)].names if id(module) in found else ()
            found[id(module)] = Place(module, (*names, name))
    return list(found.values())


def chosen(found: Sequence[Place], layers: Layers | None) -> list[Place]:
    """Return those that `layers` names: names with wildcards, modules, or a predicate of both; all if None.

    Raises:
        ArgumentError: if one of them is none of what was found.
    """
    if layers is None:
        return list(found)
    if callable(layers) and not isinstance(layers, nn.Module):
        return [place for place in found if layers(place.names[0], place.module)]
    kept: set[int] = set()
    for one in (layers,) if isinstance(layers, str | nn.Module) else layers:
        those = [place for place in found if _is(place, one)]
        if not those:
            there = ", ".join(place.name for place in found) or "none"
            raise ArgumentError(f"`layers` names {_written(one)}, which is no layer of this kind (there are: {there})")
        kept |= {id(place.module) for place in those}
    return [place for place in found if id(place.module) in kept]


def _is(place: Place, one: str | nn.Module) -> bool:
    if isinstance(one, str):
        return any(fnmatchcase(name, one) for name in place.names)
    return place.module is one


def _written(one: str | nn.Module) -> str:
    return repr(one) if isinstance(one, str) else type(one).__name__


def put(model: nn.Module, place: Place, new: nn.Module) -> nn.Module:
    """Put a module in the place of another, under all of its names; return the model, which is `new` at the top."""
    for name in place.names:
        if not name:
            return new
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = new  # pyright: ignore[reportPrivateUsage]
    return model
