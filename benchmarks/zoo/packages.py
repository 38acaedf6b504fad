"""What packages need that were built for another PyTorch, before they can be imported beside that for CPUs."""

import importlib.machinery
import logging
import sys
import types
import warnings

import torch

_KEPT: list[torch.library.Library] = []  # an operator lives as long as its library


def prepare() -> None:
    """Make torchvision and speechbrain importable, and quiet what others say of their own affairs."""
    # The wheel of torchvision is built for CUDA: its C++ operators do not load beside the PyTorch for CPUs, and the
    # import fails where shapes are registered for two of them. A schema is enough; nothing here suppresses boxes.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(operators)
    # torchaudio is built for CUDA too and has no part that loads; speechbrain imports it, and asks for its version.
    torchaudio = types.ModuleType("torchaudio")
    torchaudio.__version__ = "2.0.0"
    torchaudio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = torchaudio
    torch.set_num_threads(1)  # small arrays, and a machine that may do other things besides
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
