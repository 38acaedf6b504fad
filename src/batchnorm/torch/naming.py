"""The name of a layer, for its messages: a module does not know it, but whoever has called it does; names in a row."""

import sys
from collections.abc import Sequence

import torch
from torch import nn

SHOWN = 3  # names in a message


def outermost(layer: nn.Module) -> nn.Module:
    """Return the outermost module that holds the layer among those whose methods are running, else the layer."""
    outer, frame = layer, sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        for owner in (frame.f_locals.get("module"), frame.f_locals.get("self")):
            if isinstance(owner, nn.Module) and any(m is layer for m in owner.modules()):
                outer = owner
        frame = frame.f_back
    return outer


def layer_name(layer: nn.Module) -> str:
    """Return "features.3 (BatchNorm2d)", as the outermost module that is being called names it, or the class alone."""
    kind = type(layer).__name__
    if torch.compiler.is_compiling():
        return kind
    name = next(name for name, module in outermost(layer).named_modules() if module is layer)
    return f"{name} ({kind})" if name else kind


def shorten(names: Sequence[str]) -> str:
    """Return names as a message lists them.

    >>> shorten(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
