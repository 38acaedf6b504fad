"""The buffers of a model, and how two of them compare."""

import numpy as np
import torch
from torch import Tensor, nn

from namespaces import to_numpy
from tolerance import assert_close


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


def assert_identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def assert_alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert_close(to_numpy(a[name]), to_numpy(b[name]), "float32", 1.0 + np.abs(to_numpy(b[name])))
