"""Batch normalization for PyTorch, with torch's own names, defaults, errors and state_dict keys."""

from importlib.util import find_spec

from batchnorm.errors import MissingExtraError

if find_spec("torch") is None:
    raise MissingExtraError("batchnorm.torch", "PyTorch", "torch")

from batchnorm.renorm import Ramp, Renorm
from batchnorm.torch.control import accumulate, frozen, hold_statistics, transaction, use_running
from batchnorm.torch.functional import batch_norm
from batchnorm.torch.layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Ramp",
    "Renorm",
    "accumulate",
    "batch_norm",
    "frozen",
    "hold_statistics",
    "transaction",
    "use_running",
]
