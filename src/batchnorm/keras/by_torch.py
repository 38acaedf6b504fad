"""The torch front-end, where PyTorch is behind Keras: the one module through which a front-end knows another.

Its backward is its own, and keeps x and the moments and nothing else.
"""

from dataclasses import dataclass
from typing import Any

from torch import distributed

from batchnorm.core.passes import NormInputs
from batchnorm.core.plan import CallPlan
from batchnorm.core.policy import Policy
from batchnorm.core.spec import NormSpec
from batchnorm.core.step import Frontend
from batchnorm.errors import BatchNormError
from batchnorm.layout import Axes
from batchnorm.statistics import Array, Moments, Namespace, Running
from batchnorm.torch.autograd import FRONTEND
from batchnorm.torch.recompute import RecomputeCache
from batchnorm.torch.tracing import in_backward, in_transform, is_readable

__all__ = ["FRONTEND", "InOneProcess", "first_forward", "in_backward", "is_readable"]


def first_forward(layer: Any, x: Array, running: Running, step: Array | None) -> tuple[Running, Array | None]:
    """Return the statistics and the step to train with: those of the first forward, where this repeats one."""
    if in_transform():
        return running, step
    if layer.recompute_cache is None:
        layer.recompute_cache = RecomputeCache()
    return layer.recompute_cache.lookup(x, running, step)


@dataclass(frozen=True)
class InOneProcess:
    """A front-end that refuses to train in a group of several processes."""

    frontend: Frontend

    @property
    def xp(self) -> Namespace:
        """Return its array namespace."""
        return self.frontend.xp

    def plan(self, spec: NormSpec, inputs: NormInputs, axes: Axes) -> CallPlan:
        """Return the plan of a call."""
        return self.frontend.plan(spec, inputs, axes)

    def normalize(self, plan: CallPlan, inputs: NormInputs, policy: Policy) -> tuple[Array, Moments | None]:
        """Return the output and the moments, or raise."""
        size = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if size > 1 and policy.uses_moments:
            raise BatchNormError(
                f"`synchronized=True` over {size} processes of PyTorch is not built yet (synchronized=False normalises "
                "each process's own batch)"
            )
        return self.frontend.normalize(plan, inputs, policy)
