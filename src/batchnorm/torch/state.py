"""The running statistics of a layer: how they are updated, and how they survive casts, checkpoints and bad batches."""

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  # how torch's tools find it

from batchnorm.core import step
from batchnorm.core.spec import NormSpec
from batchnorm.core.step import BatchMoments
from batchnorm.renorm import Renorm
from batchnorm.statistics import Moments, Running
from batchnorm.torch.fast_step import ReadyCall
from batchnorm.torch.naming import layer_name
from batchnorm.torch.recompute import RecomputeCache
from batchnorm.torch.tracing import (
    first_forward,
    in_transform,
    is_exporting,
    is_one_of_many,
    is_readable,
    known_true,
    outside_grad_levels,
)

_SPEC = (  # the attributes that a `NormSpec` is made of, in its order
    "axis", "eps", "activation", "momentum", "running_variance", "virtual_batch_size", "renorm", "adjustment",
    "nonfinite", "small_batch", "sync",
)  # fmt: skip
NO_OPEN_BLOCKS: dict[str, Any] = {  # when no block is open, and nothing has been called
    "hold_depth": 0, "use_running_depth": 0, "accumulated": None, "_recompute_cache": None, "_ready_call": None,
}  # fmt: skip
RENORM_BUFFERS = ("running_stddev", "renorm_mean", "renorm_stddev")
NOT_FINITE, OVERFLOW = "with inf or NaN", "of finite values whose variance overflows"
STATISTICS = ("running_mean", "running_var", *RENORM_BUFFERS)  # in the order of `Running`


class RunningStatistics(_BatchNorm):
    """The part of `BatchNorm` that holds the running statistics."""

    renorm: Renorm | None
    nonfinite_batches: Tensor | None
    frozen: bool = False
    hold_depth: int  # how many `hold_statistics` are open
    use_running_depth: int  # how many `use_running` are open
    accumulated: list[BatchMoments] | None  # by an open `accumulate`
    _ready_call: ReadyCall | None  # the last call that was checked
    _recompute_cache: RecomputeCache | None  # where training reads running statistics: those of each call
    _thawed: dict[str, tuple[bool, Tensor | None]] | None = None  # what to go back to, while frozen
    _warned: bool = False
    _norm_spec: NormSpec | None = None  # of the options as they are; None for not yet

    def _add_buffers(self) -> None:
        self.__dict__.update(NO_OPEN_BLOCKS)
        mean = self.running_mean
        with torch.inference_mode(mode=False):  # it counts in training, wherever the layer is made
            self.nonfinite_batches = None if mean is None else torch.zeros((), dtype=torch.long, device="cpu")
        self._place_count()
        for name in RENORM_BUFFERS:
            self.register_buffer(name, None if mean is None or self.renorm is None else torch.empty_like(mean))
        self._keep_precision(self._statistics())
        self._reset_renorm()

    @torch.no_grad()
    def _reset_renorm(self) -> None:
        for name, value in self._renorm_start(self.running_mean, self.running_var).items():
            getattr(self, name).copy_(value)

    def _renorm_start(self, mean: Tensor | None, var: Tensor | None) -> dict[str, Tensor]:
        """Return where renormalization starts, from the running statistics of a plain layer."""
        if self.renorm is None or mean is None or var is None:
            return {}
        return dict(zip(RENORM_BUFFERS, (var.sqrt(), mean.clone(), var.sqrt()), strict=True))

    def reset_running_stats(self) -> None:
        """Forget every batch: mean 0, variance 1, nothing counted."""
        super().reset_running_stats()
        if (count := vars(self).get("nonfinite_batches")) is not None:  # absent while torch's own constructor runs
            count.zero_()
            self._reset_renorm()

    def _statistics(self) -> dict[str, Tensor]:
        return {name: b for name in STATISTICS if (b := self._buffers.get(name)) is not None}

    def _keep_precision(self, before: dict[str, Tensor]) -> None:
        """Where a cast has left running statistics in 16 bits, take them from `before` in float32."""
        for name, now in self._statistics().items():
            if now.dtype.itemsize < torch.float32.itemsize:
                setattr(self, name, before[name].to(device=now.device, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningStatistics":
        before = self._statistics()
        super()._apply(fn, recurse)
        self._keep_precision(before)
        self._place_count()
        if self._thawed is not None:  # gradients that are put aside are cast like the others
            self._thawed = {name: (wants, None if g is None else fn(g)) for name, (wants, g) in self._thawed.items()}
        return self

    def _place_count(self) -> None:
        """Put the count of skipped batches where the statistics are, unless they are nowhere yet.

        It is no buffer: those who build a model without memory fill in what a checkpoint holds, and this is not in it.
        """
        mean, count = self.running_mean, self.nonfinite_batches
        if mean is not None and count is not None and not mean.is_meta:
            self.nonfinite_batches = count.to(mean.device)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle takes along: no block that is open, nothing that waits for the backward."""
        return {**self.__dict__, **NO_OPEN_BLOCKS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what a pickle holds, which may be of a version that had other blocks."""
        super().__setstate__({**NO_OPEN_BLOCKS, **state})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        mean, var = (state_dict.get(f"{prefix}running_{name}") for name in ("mean", "var"))
        for name, value in self._renorm_start(mean, var).items():  # a plain layer's checkpoint has none
            state_dict.setdefault(prefix + name, value)
        if self.renorm is None:
            for name in RENORM_BUFFERS:  # of no use to a plain layer
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._keep_precision(self._statistics())  # `assign=True` puts the checkpoint's own tensors in place
        self._place_count()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._warn_of_nonfinite()
        super()._save_to_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> "RunningStatistics":
        """Set the mode; a frozen layer goes on normalising by its running statistics."""
        self._warn_of_nonfinite()
        super().train(mode)
        return self

    def _running(self) -> Running:
        return Running(*(self._buffers.get(n) for n in STATISTICS))

    def _before_call(self, x: Tensor | None) -> tuple[Running, Tensor | None]:
        """Return the running statistics and the step before a call.

        If the call computes an earlier forward on x again, as activation checkpointing does, they are those before that
        forward.
        """
        running, count = self._running(), self.num_batches_tracked
        if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point() or in_transform():
            return running, count
        if self._recompute_cache is None:
            self._recompute_cache = RecomputeCache()
        return self._recompute_cache.lookup(x, running, count)

    def freeze(self) -> None:
        """Normalise by the running statistics from now on, whatever the mode, and stop γ and β; see `frozen`."""
        if not self.frozen:
            self.frozen = True
            self._thawed = {name: (p.requires_grad, p.grad) for name, p in self.named_parameters()}
            for parameter in self.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None

    def thaw(self) -> None:
        """Undo `freeze`."""
        if self._thawed is not None:
            self.frozen = False
            for name, parameter in self.named_parameters():
                requires_grad, grad = self._thawed.get(name, (parameter.requires_grad, parameter.grad))
                if not parameter.requires_grad:  # else somebody has thawed it meanwhile
                    parameter.requires_grad_(requires_grad)
                    parameter.grad = grad
            self._thawed = None

    def inherit(self, other: "RunningStatistics") -> None:
        """Take over from a layer what is in none of its buffers: whether it is frozen, and what it has counted."""
        self.frozen, self._thawed, self._warned = other.frozen, other._thawed, other._warned
        count = other.nonfinite_batches
        self.nonfinite_batches = None if count is None else count.clone()

    def updates_statistics(self) -> bool:
        """Return whether a batch would be remembered now."""
        fixed = self.frozen or self.use_running_depth or self.hold_depth
        return self.training and self.track_running_stats and not fixed

    @property
    def norm_spec(self) -> NormSpec:
        """Return the options of the layer, checked: made once, and again when one of them has changed."""
        spec = self._norm_spec
        if spec is None:
            spec = NormSpec(*[getattr(self, name) for name in _SPEC])
            if not torch.compiler.is_compiling():
                self._norm_spec = spec
        return spec

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; after one of the options the next call checks them again."""
        super().__setattr__(name, value)
        if name in _SPEC:
            self._norm_spec = None

    def _observation_weight(self) -> float | Tensor:
        """Return α for the coming update: `momentum`, or 1/(t+1) where it is None."""
        if self.momentum is not None or self.num_batches_tracked is None:
            return 0.0 if self.momentum is None else self.momentum
        return 1.0 / (self.num_batches_tracked + 1).to(torch.float32)

    @torch.no_grad()
    def update(self, batch: BatchMoments) -> None:
        """Update the running statistics by a batch, or put its moments aside while batches are accumulated."""
        with self._outside_grad_levels(batch) as batch:
            finite = self._is_finite(batch)
            first = first_forward(batch.moments.m2)
            valid = finite if first is None else first if finite is None else finite & first
            if self.accumulated is not None:
                self.accumulated.append(batch if valid is None else step.keep_if(valid, batch, xp))
            else:
                before, momentum = self._running(), self._observation_weight()
                after, changed = step.update(before, batch, self.norm_spec, momentum, xp, valid=valid)
                if changed is not False:  # of a batch without data
                    write(before, after)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(changed)
            self.count_skipped(finite, batch)

    @contextmanager
    def _outside_grad_levels(self, batch: BatchMoments) -> Generator[BatchMoments]:
        """Leave the levels of torch.func on which the buffers cannot be written; yield the batch there."""
        if self.running_mean is None or not in_transform():
            yield batch
            return
        count, *arrays = batch.moments
        values = (*arrays, *([count] if isinstance(count, Tensor) else []))
        with outside_grad_levels(self.running_mean, values) as (mean, m2, mean_low, *counts):
            moments = Moments(counts[0] if counts else count, mean, m2, mean_low)
            yield BatchMoments(moments, batch.grouped)

    def _is_finite(self, batch: BatchMoments) -> Tensor | None:
        """Return whether a batch is finite; None where nobody asks, or where it is known to be."""
        if self.norm_spec.nonfinite == "propagate":
            return None
        dtype = batch.moments.m2.dtype if self.running_var is None else self.running_var.dtype
        finite = step.is_finite(batch, dtype, xp)
        return None if known_true(finite) else finite

    def count_skipped(self, finite: Tensor | None, batch: BatchMoments) -> None:
        """Count a batch that was skipped for not being finite, and warn of the first."""
        count = self.nonfinite_batches
        if finite is None or count is None or finite.is_meta or is_exporting():
            return
        with outside_grad_levels(count, (finite,)) if in_transform() else nullcontext((finite,)) as (finite,):
            if is_one_of_many(finite):  # the count is one of all replicas, and cannot be any of theirs
                return
            if finite.device != count.device:  # somebody has put other buffers in place
                self.nonfinite_batches = count = count.to(finite.device)
            count.add_(finite.logical_not())
        if not self._warned and finite.device.type == "cpu":  # elsewhere reading would wait for the device
            mean = batch.moments.mean + batch.moments.mean_low
            mean_is_finite = is_readable(mean) and known_true(mean.isfinite().all())
            self._warn_of_nonfinite(OVERFLOW if mean_is_finite else NOT_FINITE)

    def flush(self) -> None:
        """Update the running statistics once, by all batches that `accumulate` has put aside."""
        batches, self.accumulated = self.accumulated, None
        if batches:
            self.update(step.merged(batches, xp))  # whose m2 may overflow where that of none of them does
        self.accumulated = []

    def skipped(self) -> int:
        """Return how many batches with inf or NaN have been skipped; 0 where that cannot be read now."""
        if self.nonfinite_batches is None or torch.compiler.is_compiling():
            return 0
        try:
            return int(self.nonfinite_batches)
        except RuntimeError:  # a tracer's tensor, or one of many under vmap, has no number to read
            return 0

    def _warn_of_nonfinite(self, what: str = f"{NOT_FINITE}, or {OVERFLOW}") -> None:
        count = 0 if self._warned else self.skipped()
        if count:
            self._warned = True
            batches = "1 batch" if count == 1 else f"{count} batches"
            warnings.warn(
                f"{layer_name(self)}: {batches} {what} left the running statistics untouched, but not the "
                'output (said once, and `repr` goes on counting; nonfinite="raise" stops at the first)',
                RuntimeWarning,
                stacklevel=2,
            )


def write(buffers: Running, values: Running) -> None:
    """Write running statistics into buffers, in place."""
    for buffer, value in zip(buffers, values, strict=True):
        if buffer is not None and value is not None:
            buffer.copy_(value)
