"""The layers: torch's classes by name, default, state_dict key and error, with options that torch has not."""

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.fx import Proxy

from batchnorm.activations import ActivationName
from batchnorm.conventions import TORCH, Estimator, check_momentum, refuse_unknown
from batchnorm.core import policy, step
from batchnorm.core.spec import Adjustment, NonFinite, NormSpec, SmallBatch
from batchnorm.errors import ArgumentError, BatchNormError, ShapeError
from batchnorm.layout import Axis, normalise_axis
from batchnorm.renorm import Renorm
from batchnorm.statistics import Running
from batchnorm.torch import exported, fast_step
from batchnorm.torch.autograd import FRONTEND
from batchnorm.torch.check import better_axis, check_call, check_movable, check_real
from batchnorm.torch.naming import layer_name, outermost
from batchnorm.torch.state import RENORM_BUFFERS, RunningStatistics
from batchnorm.torch.tracing import called_from, in_backward, is_exporting, snapshot

OPTIONS: dict[str, Any] = {  # beyond torch's own, with their defaults
    "axis": TORCH.axis,
    "activation": None,
    "virtual_batch_size": None,
    "renorm": None,
    "adjustment": None,
    "sync": False,
    "process_group": None,
    "running_variance": TORCH.running_variance,
    "nonfinite": "skip",
    "small_batch": "raise",
}
MEANT = {  # by the names of other frameworks
    "epsilon": "eps", "scale": "affine", "use_scale": "affine", "center": "bias", "use_bias": "bias",
    "mask": "weights", "sample_weight": "weights", "channels": "num_features",
}  # fmt: skip


def _check_num_features(num_features: Any, axes: tuple[int, ...]) -> None:
    sizes: tuple[Any, ...] = tuple(num_features) if isinstance(num_features, Sequence) else (num_features,)
    if any(not isinstance(n, Integral) or isinstance(n, bool) or n < 0 for n in sizes):
        raise ArgumentError(f"`num_features` must count features, got {num_features!r}")
    if len(axes) == 1 and not isinstance(num_features, Integral):
        raise ArgumentError(f"`num_features` must be an int for axis={axes[0]}, got {num_features!r}")
    if len(axes) > 1 and isinstance(num_features, Integral):
        raise ArgumentError(
            f"`num_features` must be the shape of the parameters for axis={axes}: the input's rank, with 1 on every "
            f"reduced axis; got {num_features}"
        )


class BatchNorm(RunningStatistics):
    """Batch normalization of an input of any rank ≥ 2, along any axis.

    y = act(γ·(x−μ)/√(σ²+ε) + β + residual), per feature. Training: μ and σ² (biased) of the batch, and the running
    statistics move by s ← s + α·(batch − s), α = `momentum`. Inference: μ and σ² are the running ones.

    Args:
        num_features: C, the size of the input along `axis`. With several axes: the shape of the parameters, the
            input's rank with 1 on every reduced axis.
        eps: ε > 0, inside the root.
        momentum: α, the weight of the NEW observation, in [0, 1]; None: the average of all batches, α = 1/(t+1).
        affine: Whether γ and β are learned; they start at 1 and 0.
        track_running_stats: Whether running statistics are kept; without, inference normalises by the batch too.
        device: Where parameters and buffers live.
        dtype: Of the parameters. Running statistics are float32 at least, also after `.half()` or `.bfloat16()`.
        bias: Whether β is learned, if `affine`.
        axis: The KEPT axis or axes, negatives allowed. -1 for (N, L, C).
        activation: None, "relu", "leaky_relu", "silu", "gelu", "tanh" or "sigmoid".
        virtual_batch_size: v, ghost batch normalization: training splits the batch of B into G = max(1, ⌊B/v⌋) groups,
            sample i into group i mod G, and normalises each by its own moments; the running statistics take in the
            means over the groups of μ and σ².
        renorm: A `Renorm`: training follows the running statistics. Adds the buffers running_stddev, renorm_mean and
            renorm_stddev; σ is the biased one, whatever `running_variance` says.
        adjustment: `(shape) -> (scale, shift)`, broadcastable to the input: y = γ·(x̂·scale + shift) + β in training.
        sync: One set of moments for all processes. In one process it changes nothing; in several it raises for now.
        process_group: The processes of `sync`; all if None.
        running_variance: "unbiased" remembers σ²·N/(N−1), "biased" σ².
        nonfinite: A batch with inf or NaN "skip"s the update of the running statistics and warns once, "raise"s, or
            "propagate"s into them as in torch.
        small_batch: One value per feature in training "raise"s, is normalised by the "running" statistics and not
            counted, or is "allow"ed: x̂ = 0. With weights, "running" asks whether their sum exceeds 1.

    Shape: input (N, C, *) for axis=1, or any shape with C along `axis`; the output has the same shape and dtype.

    Raises:
        ArgumentError: an option out of range, or two that exclude one another, here or when the layer is called.
        DtypeError: a call with an input that is not floating point.
        ShapeError: a call with the wrong rank, feature count or shape, or one value per feature in training.
        NonFiniteError: a call under nonfinite="raise".

    Sources: Ioffe and Szegedy 2015; Hoffer, Hubara and Soudry 2017 for virtual batches; Ioffe 2017 for `renorm`.

    Differs:
        torch.nn.BatchNorm*: axis 1 and no options; where |μ| ≫ σ it loses precision. Keras: axis −1, ε 1e-3, momentum
        0.99 which is 1−α, so 0.01 here. Flax: axis −1, momentum likewise; both remember the biased variance.

    >>> layer = BatchNorm(16, axis=-1, activation="relu")
    >>> x, lengths = torch.randn(8, 20, 16), torch.arange(13, 21)
    >>> mask = torch.arange(20) < lengths[:, None]  # (N, L): True where there is a sample, False where padding
    >>> layer(x, weights=mask).shape  # (N, L, C), nothing transposed
    torch.Size([8, 20, 16])
    >>> BatchNorm(16, momentum=1.5)
    Traceback (most recent call last):
    batchnorm.errors.ArgumentError: `momentum` must lie in [0, 1] or be None, got 1.5 (Keras' 0.99 is 0.01 here)
    """

    ranks: ClassVar[tuple[int, ...] | None] = None
    axis: Axis
    _kernel_note: str | None = None  # which kernel has served the last call, where it was not the fastest
    fused_from: tuple[nn.Module, ...] = ()  # the module in whose place `activation` was put, if there was one

    def __init__(
        self,
        num_features: int | Sequence[int],
        eps: float = TORCH.epsilon,
        momentum: float | None = TORCH.momentum,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        axis: Axis = TORCH.axis,
        activation: ActivationName | None = None,
        virtual_batch_size: int | None = None,
        renorm: Renorm | None = None,
        adjustment: Adjustment | None = None,
        sync: bool = False,
        process_group: Any = None,
        running_variance: Estimator = TORCH.running_variance,
        nonfinite: NonFinite = "skip",
        small_batch: SmallBatch = "raise",
        **unknown: Any,
    ) -> None:
        """Create the layer; see the class for the arguments."""
        refuse_unknown(f"{type(self).__name__}()", unknown, MEANT)
        axes = normalise_axis(axis)
        _check_num_features(num_features, axes)
        check_momentum(momentum)
        given: Any = num_features
        features: Any = int(given) if isinstance(given, Integral) else tuple(map(int, given))
        momentum = None if momentum is None else float(momentum)  # of NumPy, say
        super().__init__(features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.axis = axes[0] if len(axes) == 1 else axes
        self.activation, self.virtual_batch_size, self.adjustment = activation, virtual_batch_size, adjustment
        self.renorm, self.sync, self.process_group = renorm, sync, process_group
        self.running_variance, self.nonfinite, self.small_batch = running_variance, nonfinite, small_batch
        self._checked_spec()
        self._add_buffers()

    def _checked_spec(self) -> NormSpec:
        """Return the options, which must also fit what the layer holds."""
        spec = self.norm_spec
        if spec.renorm is not None and self.running_mean is None:
            raise ArgumentError("`renorm` follows the running statistics, got track_running_stats=False")
        if spec.small_batch == "running" and self.running_mean is None:
            raise ArgumentError('small_batch="running" needs running statistics, got track_running_stats=False')
        return spec

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Return no children; refuse `convert_sync_batchnorm`, which asks for them, where it would lose an option."""
        if called_from("convert_sync_batchnorm"):
            for layer in (m for m in outermost(self).modules() if isinstance(m, BatchNorm)):
                lost = [o for o in layer._chosen() if not o.startswith(("sync=", "process_group="))]
                if lost:
                    raise ArgumentError(
                        f"{layer_name(layer)}: torch's SyncBatchNorm would lose {', '.join(lost)} (keep this layer, "
                        "and choose sync=True)"
                    )
        return super().named_children()

    def _check_input_dim(self, input: Tensor) -> None:
        check_real(input)
        if self.ranks is not None and input.dim() not in self.ranks:
            expected = " or ".join(f"{r}D" for r in self.ranks)
            raise ShapeError(
                f"expected {expected} input (got {input.dim()}D input of shape {tuple(input.shape)}); "
                "BatchNorm takes any rank"
            )
        axis, features = self.axis, self.num_features
        if not isinstance(axis, int) or not isinstance(features, int) or not -input.dim() <= axis < input.dim():
            return
        if is_exporting():  # where sizes are tensors, and to compare them would be noted
            return
        held = next((t for t in (self.weight, self.running_mean) if t is not None), None)
        if input.shape[axis] != features and held is not None and held.shape == (features,):
            better = better_axis(input, features)
            raise ShapeError(
                f"expected {features} features along axis={axis}, as num_features={features} says, got "
                f"{input.shape[axis]} in an input of shape {tuple(input.shape)}{better and f' ({better})'}"
            )

    def _check_sync(self) -> None:
        if not self.sync or not distributed.is_available() or not distributed.is_initialized():
            return
        size = distributed.get_world_size(self.process_group)
        if size > 1:
            raise BatchNormError(
                f"`sync=True` over {size} processes is not built yet (torch.nn.SyncBatchNorm does it on GPUs; "
                "sync=False normalises each process's own batch)"
            )

    def forward(
        self, input: Tensor, residual: Tensor | None = None, weights: Tensor | None = None, **unknown: Any
    ) -> Tensor:
        """Normalise `input`; in training, move the running statistics by one step.

        Args:
            input: x, with C along `axis`.
            residual: Added before the activation; the shape of `input`.
            weights: Bool mask, or weights ≥ 0, of the samples: broadcastable to `input` without its axes of features
                (or in its full rank, with 1 there). Statistics are those of every sample repeated `weights` times; at
                weight 0 it is as if it were not there, though its output is still normalised. They are frequencies, of
                mean one rather than sum one: N = Σw. No gradient; refused where negative or not finite, on a CPU.
            **unknown: Not accepted; for names of other frameworks, such as `mask`, the TypeError says the right one.

        Returns:
            y, in the shape and dtype of `input`.

        >>> layer = BatchNorm(2, activation="relu")
        >>> x, skip = torch.randn(4, 2, 8), torch.randn(4, 2, 8)
        >>> bool((layer(x, residual=skip) >= 0).all())
        True
        >>> layer(x, weights=torch.tensor([1, 1, 2, 0])[:, None]).shape  # one weight a sample: (4, 1) against (4, 8)
        torch.Size([4, 2, 8])
        """
        if unknown:
            refuse_unknown(f"{type(self).__name__}.forward()", unknown, MEANT)
        try:
            if weights is None and fast_step.serves(input, residual):
                y = self._normalize_in_one_call(input, residual)
                if y is not None:
                    return y
            if isinstance(input, Proxy):
                return self._traced(input, residual, weights)
            return self._normalize(input, residual, weights)
        except BatchNormError as error:
            error.args = (f"{layer_name(self)}: {error}",)
            raise

    def _traced(self, input: Proxy, residual: Any, weights: Any) -> Any:
        """Return one node of torch.fx, as torch's own layer is one."""
        tracer: Any = input.tracer
        if type(tracer).__module__.startswith("torch.ao.quantization"):
            raise BatchNormError(
                "quantization by torch.fx knows torch's own layers alone, and would leave this one in float among "
                'quantized ones (call `batchnorm.surgery.convert(model, "torch")` first, or quantize what torch.export '
                "makes)"
            )
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input, residual, weights), {})

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse `torch.jit.script`, which would exchange the layers of the very model that it is given."""
        raise BatchNormError(
            f"{layer_name(self)}: torch.jit.script cannot compile this layer (use torch.jit.trace or torch.export, or "
            'script a copy with torch\'s layers: `batchnorm.surgery.convert(copy.deepcopy(model), "torch")`)'
        )

    def _normalize_in_one_call(self, x: Tensor, residual: Tensor | None) -> Tensor | None:
        """Return the output by the native library, and update the running statistics; None where it does not serve."""
        ready = self._ready(x)
        if ready is None:
            return None
        if not self.training or self.frozen or self.use_running_depth:
            return fast_step.infer(x, residual, ready, detach=self.frozen) if ready.infers else None
        weight, bias, *_ = ready.held
        if not ready.trains or (weight is not None and "grad_sample" in vars(weight)):
            return None
        y, numbers = fast_step.train(x, weight, bias, residual, ready.fast)
        if ready.update_call is None or not self.track_running_stats or self.hold_depth or in_backward():
            return y
        if self.accumulated is not None:
            self.update(fast_step.batch_moments(numbers, ready.fast.plan))
        elif not fast_step.update(ready, numbers):
            batch = fast_step.batch_moments(numbers, ready.fast.plan)
            self.count_skipped(numbers.new_zeros((), dtype=torch.bool), batch)
        return y

    def _ready(self, x: Tensor) -> fast_step.ReadyCall | None:
        """Return the call as the native library serves it, checked; None where it does not."""
        spec, ready, parameters, buffers = self.norm_spec, self._ready_call, self._parameters, self._buffers
        try:
            held = (
                parameters["weight"], parameters["bias"],
                buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"],
            )  # fmt: skip
        except KeyError:  # somebody has put something else in their place
            return None
        if self.ranks is not None and x.ndim not in self.ranks:
            return None
        if ready is None or not fast_step.is_same(ready, spec, x, held):
            ready = fast_step.check(spec, x, held)
            if ready is None:
                return None
            self._ready_call = ready
        if self._kernel_note is not ready.note:
            self._kernel_note = ready.note
        return ready

    def _normalize(self, input: Tensor, residual: Tensor | None, weights: Tensor | None) -> Tensor:
        """Return the output by the general path: check, plan, choose the statistics, normalise, update."""
        if isinstance(input, Tensor):
            self._check_input_dim(input)
        spec = self._checked_spec()
        by_batch = not (self.frozen or self.use_running_depth) and (self.training or self.running_mean is None)
        if by_batch:
            self._refuse_per_sample_gradients()
        running, clips = self._running_before(input, by_batch=by_batch, weighted=weights is not None)
        named = self._named(running, clips)
        if is_exporting():
            call = exported.ExportCall(input, named, residual, weights)
            y = exported.normalize(self, call, by_batch=by_batch, chosen=self._chosen())
            if y is not None:
                return y
        inputs, axes = check_call(spec, input, named, residual=residual, weights=weights)
        plan = FRONTEND.plan(spec, inputs, axes)
        if input.numel() and not torch.compiler.is_compiling():
            self._kernel_note = plan.note
        chosen = policy.choose(spec, running, by_batch=by_batch, weighted=weights is not None, clips=clips)
        if not by_batch:
            return FRONTEND.normalize(plan, inputs, chosen)[0]
        self._check_training()
        y, batch = step.train(FRONTEND, spec, plan, inputs, chosen, running)
        if batch is not None and running is not None and self.updates_statistics() and not in_backward():
            self.update(batch)
        return y

    def _running_before(
        self, x: Tensor, *, by_batch: bool, weighted: bool
    ) -> tuple[Running | None, tuple[Tensor | None, ...]]:
        """Return the running statistics before a call, and in training the clips of `renorm`."""
        if by_batch and self.running_mean is None:
            return None, ()
        training = self.training and by_batch
        reads = self.renorm is not None or weighted or self.small_batch == "running"
        running, count = self._before_call(x if reads and training else None)
        return running, () if self.renorm is None or not training else self._clips(count)

    def _named(self, running: Running | None, clips: tuple[Tensor | None, ...]) -> dict[str, Tensor | None]:
        """Return γ, β and the statistics that a call reads, by name."""
        mean, var = (None, None) if running is None else running[:2]
        named: dict[str, Tensor | None] = {
            "running_mean": mean, "running_var": var, "weight": self.weight, "bias": self.bias,
        }  # fmt: skip
        if self.frozen:  # whatever `requires_grad` has been set to since
            named = {name: p if p is None else p.detach() for name, p in named.items()}
        if clips:  # those of renormalization must fit too
            named |= {name: self._buffers[name] for name in RENORM_BUFFERS}
        return named

    def _check_training(self) -> None:
        self._check_sync()
        if self.updates_statistics() and not torch.compiler.is_compiling():
            check_movable(self._statistics(), self.num_batches_tracked)

    def _refuse_per_sample_gradients(self) -> None:
        weight = self._parameters.get("weight")
        if weight is None or torch.compiler.is_compiling():
            return
        if "grad_sample" in vars(weight):  # where Opacus keeps them
            raise BatchNormError(
                "there are no gradients of single samples through the statistics of a batch (for Opacus use another "
                'normalization, as `batchnorm.surgery.convert(model, "group")` makes, or freeze this one: '
                "`frozen(model).apply()`)"
            )

    def _clips(self, step: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return rmin, rmax and dmax at this step, as 0-d tensors."""
        if self.renorm is None or step is None or self.running_mean is None:
            return ()
        if self._buffers["renorm_mean"] is None:
            raise ArgumentError("`renorm` must be chosen when the layer is made, for its buffers; it was set later")
        dtype, device = self.running_mean.dtype, self.running_mean.device
        clips = self.renorm.clips(snapshot(step).to(dtype))
        return tuple(None if c is None else torch.as_tensor(c, dtype=dtype, device=device) for c in clips)

    def _chosen(self) -> list[str]:
        """Return the options that differ from their defaults, as they are written."""
        chosen = {name: getattr(self, name) for name, default in OPTIONS.items() if getattr(self, name) != default}
        return [f"{name}={value!r}" for name, value in chosen.items()] + ["frozen=True"] * self.frozen

    def extra_repr(self) -> str:
        """Return torch's description, with the options that differ from its own, and what has happened so far.

        That is, batches skipped, and which kernel has served the last one, and why, where it was not the fastest.
        """
        count, note = self.skipped(), self._kernel_note
        noted = [f"nonfinite_batches={count}"] * (count > 0) + [f"kernel={note}"] * (note is not None)
        return ", ".join([super().extra_repr(), *self._chosen(), *noted])


class BatchNorm1d(BatchNorm, nn.BatchNorm1d):
    """`BatchNorm` for (N, C) or (N, C, L), in place of torch.nn.BatchNorm1d.

    >>> BatchNorm1d(3)(torch.randn(4, 3, 5, 5))
    Traceback (most recent call last):
    batchnorm.errors.ShapeError: BatchNorm1d: expected 2D or 3D input (got 4D input of shape (4, 3, 5, 5)); \
BatchNorm takes any rank
    """

    ranks = (2, 3)


class BatchNorm2d(BatchNorm, nn.BatchNorm2d):
    """`BatchNorm` for (N, C, H, W), in place of torch.nn.BatchNorm2d.

    >>> import torch.nn
    >>> swapped = BatchNorm2d(8)
    >>> swapped.load_state_dict(torch.nn.BatchNorm2d(8).state_dict())
    <All keys matched successfully>
    """

    ranks = (4,)


class BatchNorm3d(BatchNorm, nn.BatchNorm3d):
    """`BatchNorm` for (N, C, D, H, W), in place of torch.nn.BatchNorm3d.

    >>> BatchNorm3d(2)(torch.randn(2, 2, 3, 3, 3)).shape
    torch.Size([2, 2, 3, 3, 3])
    """

    ranks = (5,)
