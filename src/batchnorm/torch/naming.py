"""The name of a layer, for its messages: a module does not know it, but whoever has called it does."""

import sys

import torch
from torch import nn


def layer_name(layer: nn.Module) -> str:
    """Return "features.3 (BatchNorm2d)", as the outermost module that is being called names it, or the class alone."""
    kind = type(layer).__name__
    if torch.compiler.is_compiling():
        return kind
    found, frame = "", sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner is not layer:
            found = next((name for name, module in owner.named_modules() if module is layer), found)
        frame = frame.f_back
    return f"{found} ({kind})" if found else kind
