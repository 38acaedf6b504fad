"""What Inductor makes of the eager kernel is as exact as the kernel is uncompiled, at means of 0 to a million σ."""

import numpy as np
import pytest
import torch

from batchnorm import reference
from batchnorm.torch import BatchNorm
from choosing import without_native
from namespaces import to_numpy
from tolerance import assert_close, assert_within_project_bound

SHAPES = [((8, 256, 14, 14), torch.channels_last), ((32, 64, 14, 14), torch.contiguous_format)]


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # by torch.compile itself
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")  # by Inductor itself
@pytest.mark.parametrize(("shape", "layout"), SHAPES, ids=["features last", "features first"])
def test_outputs_gradients_and_statistics(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(memory_format=layout) for _ in range(2))
    layer = BatchNorm(shape[1], momentum=1.0)
    with without_native():
        step = torch.compile(layer, dynamic=False, fullgraph=True)
        for mean in (0.0, 1e2, 1e4, 1e6):
            far = (x + mean).requires_grad_()
            y = step(far)
            dx, dgamma = torch.autograd.grad(y, [far, layer.weight], dy)
            f = reference.train(to_numpy(far))
            right = reference.train_backward(to_numpy(dy), f)
            assert_within_project_bound(to_numpy(y), f.y)
            size = np.abs(to_numpy(dy)).max() / np.sqrt(f.var + f.eps) * (2.0 + np.abs(f.x_hat))
            assert_close(to_numpy(dx), right.x, "float32", size)
            terms = (np.abs(to_numpy(dy)) * (1.0 + np.abs(f.x_hat))).sum(axis=f.reduced)
            assert_close(to_numpy(dgamma), right.gamma.ravel(), "float32", terms)
            assert_close(to_numpy(layer.running_mean), f.mean.ravel(), "float32", np.abs(f.mean.ravel()) + 1.0)
            unbiased = reference.unbiased(f.var, f.count).ravel()
            assert_close(to_numpy(layer.running_var), unbiased, "float32", unbiased)


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # by torch.compile itself
def test_one_graph_for_every_batch_size_keeps_every_digit() -> None:
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(0)
    with without_native():
        compiled = torch.compile(BatchNorm(3), backend="aot_eager", dynamic=True, fullgraph=True)
        for rows in (300, 51, 512):
            x = torch.randn(rows, 3, generator=generator) + 1e6
            assert_within_project_bound(to_numpy(compiled(x)), reference.train(to_numpy(x)).y)
