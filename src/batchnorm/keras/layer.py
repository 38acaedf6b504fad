"""The layer for Keras 3, with the signature of the classic one."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import constraints, initializers, regularizers

from batchnorm.activations import check_activation
from batchnorm.conventions import (
    KERAS,
    Estimator,
    check_epsilon,
    check_groups,
    check_running_variance,
    refuse_unknown,
)
from batchnorm.core import policy, step
from batchnorm.core.passes import NormInputs
from batchnorm.core.plan import working_dtype
from batchnorm.core.spec import NormSpec
from batchnorm.core.step import BatchMoments, zero_masked
from batchnorm.errors import ArgumentError
from batchnorm.keras import configuration
from batchnorm.keras import namespace as xp
from batchnorm.keras.arguments import (
    Held,
    axes_of,
    check_fused,
    check_sizes,
    flag,
    layout_of,
    momentum_of,
    number,
    renorm_of,
)
from batchnorm.keras.backend import Backend, select_backend
from batchnorm.keras.masks import weights_of
from batchnorm.keras.namespace import ops
from batchnorm.layout import Axes, Axis
from batchnorm.statistics import Array, Running, sizes

MEANT = {  # by the names of other frameworks
    "eps": "epsilon", "affine": "scale` and `center", "bias": "center", "weights": "mask",
}  # fmt: skip


def _value(variable: Any) -> Array | None:
    return None if variable is None else ops.convert_to_tensor(variable)


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [n for n in shape if n != 1]


@keras.saving.register_keras_serializable(package="batchnorm")
class BatchNormalization(keras.layers.Layer):
    """Batch normalization with every argument of the classic Keras layer, on TensorFlow, JAX and PyTorch alike.

    y = act(γ·(x−μ)/√(σ²+ε) + β), per feature. Training: μ and σ² (biased) of the batch, and the moving statistics move
    by s ← s·momentum + batch·(1−momentum). Inference: μ and σ² are the moving ones. γ, β and the statistics are
    float32 at least, whatever `dtype` says.

    Args:
        axis: The KEPT axis or axes, negatives allowed: the features. -1 for channels last, 1 for channels first.
        momentum: The weight of the OLD statistics, in [0, 1].
        epsilon: ε > 0, inside the root.
        center: Whether β is learned.
        scale: Whether γ is learned.
        beta_initializer: Of β.
        gamma_initializer: Of γ.
        moving_mean_initializer: Of the moving mean; under `renorm` also of M.
        moving_variance_initializer: Of the moving variance; under `renorm` σ and S start at its root.
        beta_regularizer: A penalty on β, or None.
        gamma_regularizer: A penalty on γ, or None.
        beta_constraint: What β is held to, or None.
        gamma_constraint: What γ is held to, or None.
        renorm: Whether training follows the running statistics, y = γ·(x̂·r + d) + β with r = σ/S and d = (μ−M)/S, two
            constants for the gradient. Adds the weights moving_stddev, renorm_mean (M) and renorm_stddev (S).
        renorm_clipping: A dictionary with any of "rmin", "rmax", "dmax": r is clipped to [rmin, rmax], d to
            [−dmax, dmax]. A value is a number, a scalar tensor or variable, or a function of the step, such as a
            `Ramp`; the step is then a weight of the layer too.
        renorm_momentum: The weight of the old M and S, in [0, 1].
        fused: None: the fastest way there is (`implementation` says which). False: keras.ops, with equal numbers.
            True: as None, and the moving variance takes in σ²·N/(N−1), as the classic fused layer did; only where that
            could be: one axis, the channels of an input of rank 4 or 5, no float64, none of `renorm`,
            `virtual_batch_size`, `adjustment`, `synchronized`.
        trainable: Whether γ, β and the statistics may change; where not, the layer always works as in inference.
        virtual_batch_size: v, ghost batch normalization: training splits the batch of B into G = max(1, ⌊B/v⌋) groups,
            sample i into group i mod G, and normalises each by its own moments; the moving statistics take in the
            means over the groups of μ and σ².
        adjustment: `(shape) -> (scale, shift)`, broadcastable to the input: y = γ·(x̂·scale + shift) + β in training.
            It is saved with the layer where it is registered with Keras.
        name: Of the layer.
        **kwargs: `dtype` and what else every Keras layer takes, and three more:
            synchronized: One set of moments for all replicas. See the guide for what that is on each backend.
            running_variance: "biased" remembers σ², "unbiased" σ²·N/(N−1); None: what `fused` says.
            activation: None, "relu", "leaky_relu", "silu", "gelu", "tanh" or "sigmoid".

    A batch with inf or NaN, one without samples, and one that is masked altogether leave the moving statistics as they
    are.

    Raises:
        ArgumentError: an option out of range, or two that exclude one another.
        ShapeError: an input or a mask that does not fit.
        BatchNormError: `synchronized` in several processes of PyTorch.

    Sources: Ioffe and Szegedy 2015; Hoffer, Hubara and Soudry 2017 for virtual batches; Ioffe 2017 for `renorm`.

    Differs:
        keras.layers.BatchNormalization has no `fused`, `virtual_batch_size`, `adjustment` or several axes, and loses
        precision where |μ| ≫ σ. tf_keras: virtual batches must divide the batch, and give γ and β an axis more; rank 4
        is fused unless told otherwise, and then remembers the unbiased variance. torch: axis 1, ε 1e-5, and momentum
        is the weight of the NEW observation, so 0.99 here is 0.01 there. Keras' leaky_relu falls with 0.2, ours 0.01.

    >>> import numpy as np
    >>> layer = BatchNormalization(virtual_batch_size=2, activation="relu")
    >>> layer(np.ones((6, 3), "float32"), training=True).shape == (6, 3)
    True
    >>> BatchNormalization(momentum=1.5)
    Traceback (most recent call last):
    batchnorm.errors.ArgumentError: `momentum` must lie in [0, 1], got 1.5 (it weighs the old statistics: \
s ← s·momentum + batch·(1 − momentum); torch's 0.1 is 0.9 here)
    """

    def __init__(
        self,
        axis: Axis = KERAS.axis,
        momentum: float = KERAS.momentum,
        epsilon: float = KERAS.epsilon,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: Mapping[str, Any] | None = None,
        renorm_momentum: float = KERAS.momentum,
        fused: bool | None = None,
        trainable: bool = True,
        virtual_batch_size: int | None = None,
        adjustment: Any = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Create the layer; see the class for the arguments."""
        refuse_unknown(f"{type(self).__name__}()", [n for n in kwargs if n in MEANT], MEANT)
        extras = {option: kwargs.pop(option, default) for option, default in configuration.EXTRAS.items()}
        super().__init__(trainable=trainable, name=name, **kwargs)
        self.axis = axes_of(axis)
        self.momentum = momentum_of("momentum", momentum)
        self.epsilon = number("epsilon", epsilon)
        self.renorm_momentum = momentum_of("renorm_momentum", renorm_momentum)
        self.center, self.scale, self.renorm = (flag(given) for given in (center, scale, renorm))
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.fused, self.virtual_batch_size, self.adjustment = flag(fused), virtual_batch_size, adjustment
        self.synchronized, self.running_variance, self.activation = map(flag, extras.values())
        self.step = self.recompute_cache = None  # the first is counted where a clip value depends on it
        self.gamma = self.beta = self.moving_mean = self.moving_variance = None  # until the layer is built
        self.moving_stddev = self.renorm_mean = self.renorm_stddev = None  # without `renorm` always
        self._clipping = renorm_of(renorm_clipping, self.renorm_momentum)
        self._renorm = self._clipping if renorm else None
        self._check()
        self.virtual_batch_size = None if virtual_batch_size is None else int(virtual_batch_size)
        self.supports_masking = True

    def _check(self) -> None:
        check_epsilon(self.epsilon, name="epsilon")
        check_activation(self.activation)
        check_groups(self.virtual_batch_size, self.adjustment)
        if self.running_variance is not None:
            check_running_variance(self.running_variance)
        if not isinstance(self.synchronized, bool):
            raise ArgumentError(f"`synchronized` must be a bool, got {self.synchronized!r}")
        against = {name: getattr(self, name) for name in ("renorm", "virtual_batch_size", "adjustment", "synchronized")}
        against["dtype"] = self.compute_dtype if self.compute_dtype == "float64" else None
        check_fused(self.fused, self.axis, {name: value for name, value in against.items() if value})

    @property
    def renorm_clipping(self) -> dict[str, Any] | None:
        """Return the clip values as they were given; None without any."""
        return configuration.clipping_of(self._clipping)

    @property
    def estimator(self) -> Estimator:
        """Return which estimate of σ² is remembered."""
        return self.running_variance or ("unbiased" if self.fused else KERAS.running_variance)

    @property
    def implementation(self) -> str:
        """Return whose operations normalise: "batchnorm.torch" or "keras.ops"."""
        return self._backend().name

    def _backend(self) -> Backend:
        return select_backend(fused=self.fused, synchronized=self.synchronized and self.virtual_batch_size is None)

    def _layout(self, shape: Sequence[int | None]) -> Axes:
        return layout_of(shape, self.axis, fused=self.fused, virtual=self.virtual_batch_size is not None)

    def _sized(self, x: Array) -> Array:
        """Return x with the sizes of its axes of features, which the layer knows where the graph does not."""
        known: Any = self.input_spec
        if not any(x.shape[i] is None for i in known.axes):
            return x
        return ops.reshape(x, tuple(known.axes.get(i, n) for i, n in enumerate(sizes(x, xp))))

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make γ, β and the moving statistics, in float32 at least."""
        layout = self._layout(input_shape)
        check_sizes(input_shape, self.axis, layout)
        shape = layout.parameter_shape(input_shape)  # pyright: ignore[reportArgumentType]  # what it reads is known
        precise = working_dtype(self.variable_dtype, xp)

        def learned(name: str) -> Any:
            given: dict[str, Any] = {
                key: getattr(self, f"{name}_{key}") for key in ("initializer", "regularizer", "constraint")
            }
            return self.add_weight(name=name, shape=shape, dtype=precise, autocast=False, **given)

        def moving(name: str, initializer: Any) -> Any:
            kind: dict[str, Any] = {"dtype": precise, "trainable": False, "autocast": False, "aggregation": "mean"}
            return self.add_weight(name=name, shape=shape, initializer=initializer, **kind)

        draw: Any = self.moving_variance_initializer

        def stddev(shape: Any, dtype: Any = None) -> Any:
            return ops.sqrt(draw(shape, dtype=dtype))

        self.gamma = learned("gamma") if self.scale else None
        self.beta = learned("beta") if self.center else None
        self.moving_mean = moving("moving_mean", self.moving_mean_initializer)
        self.moving_variance = moving("moving_variance", self.moving_variance_initializer)
        if self._renorm is not None:
            self.moving_stddev = moving("moving_stddev", stddev)
            self.renorm_mean = moving("renorm_mean", self.moving_mean_initializer)
            self.renorm_stddev = moving("renorm_stddev", stddev)
            if any(callable(c) and not isinstance(c, Held) for c in (self.renorm_clipping or {}).values()):
                kind: dict[str, Any] = {"dtype": "int32", "trainable": False, "aggregation": "only_first_replica"}
                self.step = self.add_weight(name="step", shape=(), initializer="zeros", **kind)
        axes = {i: input_shape[i] for i in layout.kept}
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes=axes)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer; see `call`."""
        if "weights" in kwargs:
            refuse_unknown(f"{type(self).__name__}.call()", ["weights"], MEANT)
        return super().__call__(*args, **kwargs)

    def call(self, inputs: Array, training: bool | None = None, mask: Array | None = None) -> Array:
        """Normalise `inputs`; in training, move the moving statistics by one step.

        Args:
            inputs: x, with the features along `axis`.
            training: Whether to normalise by the batch; a layer that is not `trainable` never does.
            mask: Bool, or weights ≥ 0, of the samples: broadcastable to `inputs` without its axes of features. Where
                it is 0 the sample is as if it were not there, though its output is still normalised. A mask that the
                layer before has handed on, as `Embedding(mask_zero=True)` does, belongs to the first axes of `inputs`;
                it is ignored where one of these is an axis of features, of which it leaves out some, not samples.

        Returns:
            y, in the shape of `inputs` and the dtype that the layer computes in.
        """
        x = self._sized(ops.cast(inputs, self.compute_dtype))
        layout = self._layout(x.shape)
        backend, spec = self._backend(), self._spec()
        frontend = backend.frontend
        weights = weights_of(mask, inputs, x, layout, backend.is_readable)
        x = x if weights is None else zero_masked(x, weights, xp)
        arrays = NormInputs(x, _value(self.gamma), _value(self.beta), None, weights)
        plan, running = frontend.plan(spec, arrays, layout), self._running()
        if not (training and self.trainable):
            return frontend.normalize(plan, arrays, policy.choose(spec, running, by_batch=False))[0]
        count = _value(self.step)
        if weights is not None or spec.renorm is not None:
            running, count = backend.first_forward(self, x, running, count)
        clips = self._clips(x, count)
        chosen = policy.choose(spec, running, by_batch=True, weighted=weights is not None, clips=clips)
        y, batch = step.train(frontend, spec, plan, arrays, chosen, running)
        if batch is not None and not backend.is_repeating():
            self._update(spec, batch)
        return y

    def _spec(self) -> NormSpec:
        """Return the options as every front-end has them."""
        return NormSpec(
            self.axis, self.epsilon, self.activation, 1.0 - self.momentum, self.estimator, self.virtual_batch_size,
            self._renorm, self.adjustment, small_batch="allow", sync=self.synchronized,
        )  # fmt: skip

    @property
    def _moving(self) -> tuple[Any, ...]:
        """Return the variables of `Running`, in its order."""
        plain = self.moving_mean, self.moving_variance
        return plain if self._renorm is None else (*plain, self.moving_stddev, self.renorm_mean, self.renorm_stddev)

    def _running(self) -> Running:
        return Running(*(_value(v) for v in self._moving))

    def _clips(self, x: Array, count: Array | None) -> tuple[Array | None, ...]:
        """Return rmin, rmax and dmax of `renorm` at a step; () without."""
        if self._renorm is None:
            return ()
        clips = self._renorm.clips(None if count is None else ops.cast(count, "float32"))
        return tuple(None if c is None else xp.asarray(c, dtype=working_dtype(x.dtype, xp)) for c in clips)

    def _update(self, spec: NormSpec, batch: BatchMoments) -> None:
        """Update the moving statistics by a batch, unless it is not finite or has no weight."""
        before = self._running()
        valid = step.is_finite(batch, before.var.dtype, xp)
        after, changed = step.update(before, batch, spec, 1.0 - self.momentum, xp, valid=valid)
        for variable, new in zip(self._moving, after, strict=False):
            variable.assign(new)  # the replicas of a strategy must all assign, one without samples too
        if self.step is not None:
            self.step.assign(self.step + ops.cast(changed, self.step.dtype))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return the shape of the output: that of the input."""
        self._layout(input_shape)
        return tuple(input_shape)

    def load_own_variables(self, store: Any) -> None:
        """Take weights in; those of classic virtual batches, which have an axis more, in the shape they have here."""
        weights = {name: store[name][()] for name in store.keys()}  # noqa: SIM118  # it is no dictionary
        for name, variable in zip(map(str, range(len(self.weights))), self.weights, strict=True):
            if variable is self.step and name not in weights:  # of a layer without a schedule
                weights[name] = 0
            elif name in weights and _without_ones(weights[name].shape) == _without_ones(variable.shape):
                weights[name] = weights[name].reshape(variable.shape)
        super().load_own_variables(weights)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as JSON can hold them."""
        return {**super().get_config(), **configuration.written(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "BatchNormalization":
        """Return the layer that a configuration describes: our own, Keras 3's, or one of the classic layers'."""
        return super().from_config(configuration.read(config))
