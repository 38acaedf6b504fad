"""What a layer remembers: its buffers, how they move, and how they survive casts, checkpoints and bad batches."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  # how torch's tools find it

from batchnorm.conventions import Estimator
from batchnorm.renorm import Renorm
from batchnorm.statistics import Moments, Running
from batchnorm.torch.naming import layer_name
from batchnorm.torch.recompute import Ledger, first_forward
from batchnorm.torch.snapshot import tracing
from batchnorm.torch.training import NonFinite, Step, finite, merged, remember, unless
from batchnorm.torch.transforms import batched, beneath_derivatives, readable, surely, transforming

CLOSED: dict[str, Any] = {  # when no block is open, and nothing has been called
    "held": 0, "by_running": 0, "collected": None, "_ledger": None, "checked": None,
}  # fmt: skip
RENORM_BUFFERS = ("running_stddev", "renorm_mean", "renorm_stddev")
NOT_FINITE, OVERFLOW = "with inf or NaN", "of finite values whose variance overflows"
STATISTICS = ("running_mean", "running_var", *RENORM_BUFFERS)  # in the order of `Running`


class Remembering(_BatchNorm):
    """The part of `BatchNorm` that holds the running statistics."""

    renorm: Renorm | None
    nonfinite: NonFinite
    running_variance: Estimator
    nonfinite_batches: Tensor | None
    frozen: bool = False
    held: int  # how many `hold_statistics` are open
    by_running: int  # how many `use_running` are open
    collected: list[Step] | None  # by an open `accumulate`
    _ledger: Ledger | None  # where training reads running statistics: what each call has found
    _thawed: dict[str, tuple[bool, Tensor | None]] | None = None  # what to go back to, while frozen
    _warned: bool = False

    def _add_buffers(self) -> None:
        self.__dict__.update(CLOSED)
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Remembering":
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
        return {**self.__dict__, **CLOSED}

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

    def train(self, mode: bool = True) -> "Remembering":
        """Set the mode; a frozen layer goes on normalising by its running statistics."""
        self._warn_of_nonfinite()
        super().train(mode)
        return self

    def _running(self) -> Running:
        return Running(*(self._buffers.get(n) for n in STATISTICS))

    def _seen(self, x: Tensor | None) -> tuple[Running, Tensor | None]:
        """Return the running statistics and the step; with x, those that a forward repeated on x has found at first."""
        running, step = self._running(), self.num_batches_tracked
        if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point() or transforming():
            return running, step
        if self._ledger is None:
            self._ledger = Ledger()
        return self._ledger.seen(x, running, step)

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

    def inherit(self, other: "Remembering") -> None:
        """Take over from a layer what is in none of its buffers: whether it is frozen, and what it has counted."""
        self.frozen, self._thawed, self._warned = other.frozen, other._thawed, other._warned
        count = other.nonfinite_batches
        self.nonfinite_batches = None if count is None else count.clone()

    def listens(self) -> bool:
        """Return whether a batch would be remembered now."""
        fixed = self.frozen or self.by_running or self.held
        return self.training and self.track_running_stats and not fixed

    def _observation_weight(self) -> float | Tensor:
        """Return α for the coming update: `momentum`, or 1/(t+1) where it is None."""
        if self.momentum is not None or self.num_batches_tracked is None:
            return 0.0 if self.momentum is None else self.momentum
        return 1.0 / (self.num_batches_tracked + 1).to(torch.float32)

    def _remember(self, step: Step) -> None:
        """Move the running statistics by one batch, or put it aside while batches are accumulated."""
        if not transforming():
            self._remember_here(step)
        elif self.running_mean is not None:
            count, mean, m2, mean_low = step.moments
            given = (mean, m2, mean_low, *([count] if isinstance(count, Tensor) else []))
            with beneath_derivatives(self.running_mean, given) as (mean, m2, mean_low, *counted):
                self._remember_here(Step(Moments(counted[0] if counted else count, mean, m2, mean_low), step.grouped))

    def _remember_here(self, step: Step) -> None:
        good = self._good(step)
        if good is not None and surely(good):
            good = None
        first = first_forward(step.moments.m2)
        moves = good if first is None else first if good is None else good & first
        if self.collected is None:
            self._move(step, moves)
        else:
            self.collected.append(step if moves is None else unless(moves, step))
        self._count(good, step)

    def _good(self, step: Step) -> Tensor | None:
        """Return whether a batch is finite; None where nobody asks."""
        if self.nonfinite == "propagate":
            return None
        return finite(step, step.moments.m2.dtype if self.running_var is None else self.running_var.dtype)

    def _count(self, good: Tensor | None, step: Step) -> None:
        """Count a batch that was skipped, and warn of the first."""
        count = self.nonfinite_batches
        if good is None or count is None or good.is_meta or tracing():
            return
        with beneath_derivatives(count, (good,)) if transforming() else nullcontext((good,)) as (good,):
            if batched(good):  # the count is one of all replicas, and cannot be any of theirs
                return
            if good.device != count.device:  # somebody has put other buffers in place
                self.nonfinite_batches = count = count.to(good.device)
            count.add_(good.logical_not())
        if not self._warned and good.device.type == "cpu":  # elsewhere reading would wait for the device
            mean = step.moments.mean + step.moments.mean_low
            finite_mean = readable(mean) and surely(mean.isfinite().all())
            self._warn_of_nonfinite(OVERFLOW if finite_mean else NOT_FINITE)

    def _move(self, step: Step, good: Tensor | None) -> None:
        renorm = None if self.renorm is None else (self.renorm.momentum, self.eps)
        moved = remember(
            self._running(),
            step,
            self._observation_weight(),
            estimator=self.running_variance,
            good=good,
            renorm=renorm,
        )
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1 if moved is None else moved)

    def settle(self) -> None:
        """Move the running statistics once, by all batches that `accumulate` has put aside."""
        steps, self.collected = self.collected, []
        if steps:
            step = merged(steps)  # whose m2 may overflow where that of none of them does
            good = self._good(step)
            self._move(step, good)
            self._count(good, step)

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
