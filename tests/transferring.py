"""Layers of several frameworks behind one face: what `test_surgery_transfer` compares.

KERAS_BACKEND=tensorflow python transferring.py torch batchnorm keras tf_keras nnx linen haiku
"""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEATURES, BEFORE, STEPS, RATE = 4, 20, 5, 0.1
FEW, MANY = 16, 20_000  # rows: where the estimator of the variance makes a difference of 7 %, and where it makes none
Array = NDArray[Any]


def data(step: int, rows: int) -> tuple[Array, Array]:
    """Return a batch and what each output is multiplied by in the loss."""
    drawn = np.random.default_rng(step)
    x = drawn.normal(2, 3, (rows, FEATURES)).astype(np.float32) * np.arange(1, FEATURES + 1, dtype=np.float32)
    return x, drawn.normal(size=(rows, FEATURES)).astype(np.float32) / rows


class Torch:
    """`words` are what the framework calls γ, β, the weight of statistics, and ε."""

    words = ("affine", "bias", "momentum", "eps")
    weighs_new = True

    def __init__(self, config: dict[str, Any], kind: str) -> None:
        import torch

        from batchnorm.torch import BatchNorm

        self.torch = torch
        self.layer = (torch.nn.BatchNorm1d if kind == "torch" else BatchNorm)(**{"num_features": FEATURES} | config)
        self.source: Any = self.layer

    def load(self, state: Any) -> None:
        self.layer.load_state_dict(state)

    def infer(self, x: Array) -> Array:
        with self.torch.no_grad():
            return self.layer.eval()(self.torch.from_numpy(x)).numpy()

    def step(self, x: Array, weights: Array) -> None:
        self.layer.zero_grad()
        y = self.layer.train()(self.torch.from_numpy(x).requires_grad_())
        (y * self.torch.from_numpy(weights)).sum().backward()
        with self.torch.no_grad():
            for parameter in self.layer.parameters():
                parameter -= RATE * parameter.grad


class Keras:
    words = ("scale", "center", "momentum", "epsilon")
    weighs_new = False

    def __init__(self, config: dict[str, Any], kind: str) -> None:
        import tensorflow as tf

        if kind == "tf_keras":
            import tf_keras as keras
        else:
            import keras
        self.tf, self.classic = tf, kind == "tf_keras"
        self.layer = keras.layers.BatchNormalization(**config)
        self.layer.build((None, FEATURES))
        self.source: Any = self.layer

    def load(self, state: Any) -> None:
        self.layer.set_weights(state)

    def infer(self, x: Array) -> Array:
        return np.asarray(self.layer(x, training=False))

    def step(self, x: Array, weights: Array) -> None:
        with self.tf.GradientTape() as tape:
            loss = self.tf.reduce_sum(self.layer(x, training=True) * weights)
        learned = self.layer.trainable_variables
        values = [v if self.classic else v.value for v in learned]
        for variable, gradient in zip(learned, tape.gradient(loss, values) if learned else [], strict=True):
            variable.assign(variable - RATE * gradient)


class Nnx:
    words = ("use_scale", "use_bias", "momentum", "epsilon")
    weighs_new = False

    def __init__(self, config: dict[str, Any], kind: str) -> None:
        from flax import nnx

        self.nnx = nnx
        self.layer = nnx.BatchNorm(**({"num_features": FEATURES} | config), rngs=nnx.Rngs(0))
        self.source: Any = self.layer

    def load(self, state: Any) -> None:
        for name, value in state.items():
            getattr(self.layer, name)[...] = value

    def infer(self, x: Array) -> Array:
        return np.asarray(self.layer(x, use_running_average=True))

    def step(self, x: Array, weights: Array) -> None:
        def loss(layer: Any) -> Any:
            return (layer(x, use_running_average=False) * weights).sum()

        gradient = self.nnx.grad(loss)(self.layer)
        for name in ("scale", "bias"):
            parameter = getattr(self.layer, name)
            if parameter is not None:
                parameter[...] = parameter[...] - RATE * gradient[name][...]


class Pure:
    """A layer whose state lies outside: {"params": …, and the collection of the statistics}."""

    collection: str
    source: Any

    def load(self, state: Any) -> None:
        self.source = state

    def apply(self, state: Any, x: Array, training: bool) -> tuple[Any, Any]:
        """Return the output and the statistics after it."""
        raise NotImplementedError

    def infer(self, x: Array) -> Array:
        return np.asarray(self.apply(self.source, x, False)[0])

    def step(self, x: Array, weights: Array) -> None:
        import jax

        def loss(params: Any) -> tuple[Any, Any]:
            y, statistics = self.apply({**self.source, "params": params}, x, True)
            return (y * weights).sum(), statistics

        params = self.source["params"]
        gradient, statistics = jax.grad(loss, has_aux=True)(params) if params else ({}, loss(params)[1])
        learned = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
        self.source = {"params": learned, self.collection: statistics}


class Linen(Pure):
    words = ("use_scale", "use_bias", "momentum", "epsilon")
    weighs_new = False
    collection = "batch_stats"

    def __init__(self, config: dict[str, Any], kind: str) -> None:
        import jax
        from flax import linen

        self.layer = linen.BatchNorm(**config)
        made = self.layer.init(jax.random.key(0), data(0, FEW)[0], use_running_average=True)
        self.source = {"params": {}, **made}

    def apply(self, state: Any, x: Array, training: bool) -> tuple[Any, Any]:
        y, after = self.layer.apply(state, x, use_running_average=not training, mutable=["batch_stats"])
        return y, after["batch_stats"]


class Haiku(Pure):
    words = ("create_scale", "create_offset", "decay_rate", "eps")
    weighs_new = False
    collection = "state"

    def __init__(self, config: dict[str, Any], kind: str) -> None:
        import haiku

        self.pure = haiku.transform_with_state(lambda x, training: haiku.BatchNorm(**config)(x, training))
        params, state = self.pure.init(None, data(0, FEW)[0], True)
        self.source = {"params": params, "state": state}

    def apply(self, state: Any, x: Array, training: bool) -> tuple[Any, Any]:
        return self.pure.apply(state["params"], state["state"], None, x, training)


KINDS: dict[str, Any] = {
    "torch": Torch, "batchnorm": Torch, "keras": Keras, "tf_keras": Keras, "nnx": Nnx, "linen": Linen, "haiku": Haiku,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "without β": {"beta": False},
    "without γ": {"gamma": False},
    "without either": {"gamma": False, "beta": False},
    "renorm": {"renorm": True},
}
WITH_RENORM = ("batchnorm", "tf_keras")


def cases(names: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield what can be compared: torch cannot leave out γ alone, and learns where the others do not."""
    for source, target in itertools.permutations(names, 2):
        for case in CASES:
            if case == "renorm" and not {source, target} <= set(WITH_RENORM):
                continue
            if case == "without γ" and {source, target} & {"torch", "batchnorm"}:
                continue
            yield source, target, case


def first_layer(name: str, case: str, place: int) -> tuple[Any, dict[str, Any]]:
    """Return a layer of the source with numbers of its own for momentum and ε, and its config."""
    kind, chosen = KINDS[name], {"gamma": True, "beta": True, **CASES[case]}
    gamma, beta, momentum, eps = kind.words
    new = 0.5 - 0.03 * place
    config = {gamma: chosen["gamma"], beta: chosen["beta"], eps: 0.5 * (1 + place)}  # so that its place matters
    config[momentum] = new if kind.weighs_new else 1 - new
    if "renorm" in chosen and name == "batchnorm":
        from batchnorm.torch import Renorm

        config["renorm"] = Renorm(rmax=1.2, dmax=0.3, momentum=0.3)
    elif "renorm" in chosen:
        config |= {"renorm": True, "renorm_momentum": 0.7, "renorm_clipping": {"rmax": 1.2, "dmax": 0.3}}
    return kind(config, name), config


def trained(layer: Any, steps: range, rows: int) -> None:
    for step in steps:
        layer.step(*data(step, rows))


def measured(names: list[str], source: str, target: str, case: str) -> list[float]:
    """Return how far apart the outputs are, as a share of the largest.

    In inference; after more training of both on large batches; the same on small ones, where the running variance is
    handed over and back as each framework remembers it.
    """
    from batchnorm.surgery import transfer

    found = list[float]()
    x, _ = data(99, FEW)
    for rows, count in ((MANY, None), (FEW, FEW)):
        first, config = first_layer(source, case, names.index(source))
        trained(first, range(BEFORE), rows)
        handed = transfer(first.source, source, target, config=config, count=count)
        second = KINDS[target](handed.config, target)
        second.load(handed.state)
        if count is None:
            found.append(apart(first, second, x))
        trained(first, range(BEFORE, BEFORE + STEPS), rows)
        trained(second, range(BEFORE, BEFORE + STEPS), rows)
        if count is not None:
            back = transfer(second.source, target, source, config=handed.config, count=count)
            second = KINDS[source]({**config, **back.config}, source)
            second.load(back.state)
        found.append(apart(first, second, x))
    return found


def images() -> list[float]:
    """Return the same of images, which tf.keras fuses: it remembers the unbiased variance, and our layer goes on so."""
    import tf_keras

    from batchnorm.surgery import transfer

    def batch(step: int) -> Array:
        return data(step, FEW)[0].reshape(FEW // 4, 2, 2, FEATURES)

    first = tf_keras.layers.BatchNormalization(momentum=0.7)
    for step in range(BEFORE):
        first(batch(step), training=True)
    handed = transfer(first, "tf_keras", "batchnorm")
    second = Torch({**handed.config, "axis": -1}, "batchnorm")
    second.load(handed.state)
    found = [apart_of(np.asarray(first(batch(99))), second.infer(batch(99)))]
    for step in range(BEFORE, BEFORE + STEPS):
        first(batch(step), training=True)
        second.layer.train()(second.torch.from_numpy(batch(step)))
    return [*found, apart_of(np.asarray(first(batch(99))), second.infer(batch(99))), 0.0]


def apart(first: Any, second: Any, x: Array) -> float:
    return apart_of(first.infer(x), second.infer(x))


def apart_of(expected: Array, found: Array) -> float:
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def main() -> None:
    """Train a layer of each framework here a little, hand it to the others, and tell how far these are off."""
    names = sys.argv[1:]
    for source, target, case in cases(names):
        print("found", source, target, *measured(names, source, target, case), case, sep="\t", flush=True)
    print("found", "tf_keras", "batchnorm", *images(), "images", sep="\t", flush=True)


if __name__ == "__main__":
    main()
