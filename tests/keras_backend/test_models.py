"""The layer in models: trained, evaluated and used as Keras does it, beside Keras' own layer where that has a say."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from differentiate import BACKEND, Array, moving, numpy
from keras import layers

from batchnorm.keras import BatchNormalization, Ramp
from tolerance import PROJECT_BOUND, assert_close, assert_same_to_project_bound

KINDS = [BatchNormalization, layers.BatchNormalization]


def data(samples: int = 24, *shape: int) -> tuple[Array, Array]:
    """Return inputs far from standard, and targets that depend on them."""
    rng = np.random.default_rng(5)
    x = rng.normal(3.0, 2.0, (samples, *(shape or (4,)))).astype(np.float32)
    return x, (x.mean(axis=-1, keepdims=True) - 3.0).astype(np.float32)


def sequential(norm: Any) -> Any:
    return keras.Sequential([keras.Input((4,)), layers.Dense(6), norm, layers.ReLU(), layers.Dense(1)])


def functional(norm: Any) -> Any:
    x = keras.Input((4,))
    y = layers.ReLU()(norm(layers.Dense(6)(x)))
    return keras.Model(x, layers.Dense(1)(layers.Concatenate()([layers.Dense(2)(x), y])))


class Subclassed(keras.Model):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.hidden, self.norm, self.out = layers.Dense(6), norm, layers.Dense(1)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.out(keras.ops.relu(self.norm(self.hidden(x), training=training)))


def alone(norm: Any, *shape: int) -> Any:
    return keras.Sequential([keras.Input(shape or (4,)), norm])


def fitted(model: Any, x: Array, y: Array, rate: float = 0.1, **options: Any) -> Any:
    """Fit in order, a few batches of ten."""
    compiled = {name: options.pop(name) for name in ("jit_compile", "run_eagerly") if name in options}
    model.compile(keras.optimizers.SGD(rate), "mse", **compiled)
    return model.fit(x, y, **{"batch_size": 10, "shuffle": False, "verbose": 0, **options})


@pytest.mark.parametrize("build", [sequential, functional, Subclassed])
@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 4, "renorm": True}], ids=["plain", "options"])
def test_a_model_learns(build: Callable[[Any], Any], options: dict[str, Any]) -> None:
    keras.utils.set_random_seed(1)
    norm = BatchNormalization(momentum=0.8, **options)
    model, (x, y) = build(norm), data()
    losses = fitted(model, x, y, 0.01, epochs=8, batch_size=8).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    after = moving(norm)
    assert (after["moving_mean"] != 0.0).all()
    assert (after["moving_variance"] != 1.0).all()
    loss, predicted = model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)
    assert loss == pytest.approx(np.mean((predicted - y) ** 2), rel=PROJECT_BOUND)
    for name, value in moving(norm).items():
        np.testing.assert_array_equal(value, after[name])


@pytest.mark.parametrize("training", [None, False, True])
def test_training_is_found_as_keras_finds_it(training: bool | None) -> None:
    x = data()[0]
    found = []
    for kind in KINDS:
        norm = kind()
        found.append([numpy(alone(norm)(x, training=training)), numpy(norm(x)), *moving(norm).values()])
    for mine, other in zip(*found, strict=True):
        assert_same_to_project_bound(mine, other)
    assert bool(np.abs(found[0][0].mean()) < 1.0) is (training is True)


def virtual_moments(x: Array, size: int) -> tuple[Array, Array]:
    """Return the means over the groups, sample i in group i mod G, of mean and variance."""
    groups = max(1, len(x) // size)
    parts = [x[g::groups].astype(np.float64) for g in range(groups)]
    return np.mean([p.mean(0) for p in parts], 0), np.mean([p.var(0) for p in parts], 0)


WAYS = [{"jit_compile": False}, {"run_eagerly": True}]
WAYS += [{"jit_compile": True}] if BACKEND != "torch" else []  # torch.compile takes half a minute for it


@pytest.mark.parametrize("compiled", WAYS, ids=str)
@pytest.mark.parametrize("size", [None, 3, 4])
def test_every_way_to_run_remembers_each_batch(size: int | None, compiled: dict[str, bool]) -> None:
    x = data(23)[0]
    norm = BatchNormalization(momentum=0.6, virtual_batch_size=size)
    fitted(alone(norm), x, x, 0.0, epochs=1, **compiled)
    mean, var = np.zeros(4), np.ones(4)
    for batch in (x[:10], x[10:20], x[20:]):  # the last is smaller, and no size divides it
        new_mean, new_var = virtual_moments(batch, size or len(batch))
        mean, var = 0.6 * mean + 0.4 * new_mean, 0.6 * var + 0.4 * new_var
    assert_same_to_project_bound(moving(norm)["moving_mean"], mean)
    assert_same_to_project_bound(moving(norm)["moving_variance"], var)
    assert_same_to_project_bound(numpy(norm.beta), np.zeros(4))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph with sizes that only the run tells is TensorFlow's")
@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 4}, {"renorm": True}, {"axis": [1, 2]}], ids=str)
def test_a_graph_for_every_batch_size(options: dict[str, Any]) -> None:
    import tensorflow as tf

    eager, graph = (alone(BatchNormalization(**options), 3, 4) for _ in range(2))
    traced = tf.function(lambda x: graph(x, training=True), input_signature=[tf.TensorSpec((None, 3, 4))])
    for samples in (10, 3, 1, 8):
        x = data(samples, 3, 4)[0]
        assert_same_to_project_bound(numpy(traced(x)), numpy(eager(x, training=True)))
    assert traced.experimental_get_tracing_count() == 1
    for name, value in moving(graph.layers[0]).items():
        assert_same_to_project_bound(value, moving(eager.layers[0])[name])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_low_precision_keeps_its_statistics_in_float32(policy: str) -> None:
    norm, x = BatchNormalization(momentum=0.5, dtype=policy), data()[0]
    model = keras.Sequential([keras.Input((4,)), norm])
    fitted(model, x, x, batch_size=24)
    assert [v.dtype for v in norm.weights] == ["float32"] * 4
    low = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(model(x).dtype) == low
    rounded = numpy(keras.ops.cast(x, low))
    assert_close(moving(norm)["moving_mean"], 0.5 * rounded.mean(0), "float32", np.abs(rounded).max(0))
    assert_close(moving(norm)["moving_variance"], 0.5 + 0.5 * rounded.var(0), "float32", (rounded**2).max(0))
    assert (np.abs(numpy(norm.gamma) - 1.0) > 0.0).all()


WORDS = np.array([[3, 1, 0, 0], [2, 0, 0, 0], [4, 3, 2, 1], [1, 2, 4, 0]], dtype=np.int32)  # 0 is padding
NEIGHBOURS = {
    "GRU": lambda: layers.GRU(2),
    "both ways": lambda: layers.Bidirectional(layers.LSTM(2)),
    "a second one": lambda: BatchNormalization(virtual_batch_size=2, renorm=True),
}


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
@pytest.mark.parametrize("kind", ["embedding", "masking"])
def test_padding_is_passed_by_and_passed_on(kind: str, neighbour: str) -> None:
    table = np.random.default_rng(6).normal(2.0, 3.0, (5, 3)).astype(np.float32) * (np.arange(5) > 0)[:, None]
    embed = layers.Embedding(5, 3, mask_zero=True)
    x, source = (WORDS, embed) if kind == "embedding" else (table[WORDS], layers.Masking())
    norm, following = BatchNormalization(momentum=0.0), NEIGHBOURS[neighbour]()
    given = keras.Input(x.shape[1:], dtype=str(x.dtype))
    masked = source(given)
    normal = norm(masked)
    assert normal._keras_mask is masked._keras_mask
    model = keras.Model(given, [normal, following(normal)])
    if kind == "embedding":
        embed.set_weights([table])
    y, _ = (numpy(a) for a in model(x, training=True))
    real = table[WORDS][WORDS > 0]
    assert_same_to_project_bound(moving(norm)["moving_mean"], real.mean(0))
    assert_same_to_project_bound(moving(norm)["moving_variance"], real.var(0))
    assert_same_to_project_bound(y[WORDS > 0].mean(0), np.zeros(3))


def test_a_layer_at_every_step_of_time() -> None:
    x = data(6, 3, 4)[0]
    found = []
    for kind in KINDS:
        wrapped = layers.TimeDistributed(kind(momentum=0.5))
        outputs = [numpy(wrapped(x, training=training)) for training in (True, False)]
        found.append([*outputs, *moving(wrapped.layer).values()])
    for mine, other in zip(*found, strict=True):
        assert_same_to_project_bound(mine, other)
    assert (found[0][2] != 0.0).all()


LATE = ["after"] if BACKEND != "jax" else []  # there Keras refuses to go on without compiling again


@pytest.mark.parametrize("frozen", ["before", "after, compiled again", *LATE])
def test_freezing_counts_when_keras_says(frozen: str) -> None:
    x = data()[0]
    found = []
    for kind in KINDS:
        norm = kind(moving_mean_initializer="ones", trainable=frozen != "before")
        model = keras.Sequential([keras.Input((4,)), layers.Dense(4, kernel_initializer="identity"), norm])
        fitted(model, x, x, epochs=1)
        if frozen != "before":
            norm.trainable = False
            (fitted(model, x, x, epochs=1) if "again" in frozen else model.fit(x, x, verbose=0))
        found.append([np.concatenate([numpy(v) for v in norm.weights])])
        found[-1] += [numpy(model(x, training=True)), np.array(len(model.trainable_weights))]
    for mine, other in zip(*found, strict=True):
        assert_same_to_project_bound(mine, other)
    assert bool((found[0][0][8:12] == 1.0).all()) is (frozen == "before")


def test_a_layer_used_twice_remembers_both() -> None:
    x, found = data()[0], []
    for kind in KINDS:
        norm, given = kind(momentum=0.5), keras.Input((4,))
        model = keras.Model(given, norm(norm(given) + 5.0))
        y = numpy(model(x, training=True))
        found.append([y, *moving(norm).values()])
    for mine, other in zip(*found, strict=True):
        assert_same_to_project_bound(mine, other)
    assert_same_to_project_bound(found[0][1], 0.25 * x.mean(0) + 0.5 * 5.0)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")  # said of Keras' own layers too
def test_quantization_leaves_the_layer() -> None:
    x = data()[0]
    norm = BatchNormalization(momentum=0.5)
    model = keras.Sequential([keras.Input((4,)), norm, layers.Dense(2)])
    fitted(model, x, x[:, :2])
    before, y = norm.get_weights(), numpy(norm(x))
    model.quantize("int8")
    assert model.layers[1].kernel.dtype == "int8"
    assert model.layers[0] is norm
    assert norm.dtype_policy.name == "float32"
    for mine, other in zip(norm.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(numpy(norm(x)), y)


@pytest.mark.skipif(BACKEND != "torch", reason="Keras' RematScope fails around any layer in a graph here")
@pytest.mark.parametrize("fused", [None, False])
def test_a_repeated_forward_is_counted_once(fused: bool | None) -> None:
    x = data(10)[0]
    norm = BatchNormalization(momentum=0.5, fused=fused)
    with keras.RematScope(mode="full"):  # what follows the layer makes the repetition run through all of it
        block = keras.Sequential([norm, layers.Activation("tanh")])
    fitted(keras.Sequential([keras.Input((4,)), layers.Dense(4, kernel_initializer="identity"), block]), x, x, 0.0)
    assert_same_to_project_bound(moving(norm)["moving_mean"], 0.5 * x.mean(0))


REREAD: dict[str, dict[str, Any]] = {  # what a training step reads of what it then moves
    "renorm": {"renorm": True, "renorm_momentum": 0.5},
    "a schedule": {"renorm": True, "renorm_clipping": {"rmax": Ramp(1.0, 3.0, 0, 4)}, "renorm_momentum": 0.0},
    "virtual batches": {"renorm": True, "renorm_momentum": 0.0, "virtual_batch_size": 4},
}


@pytest.mark.skipif(BACKEND != "torch", reason="Keras' RematScope fails around any layer in a graph here")
@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("case", REREAD)
def test_a_repeated_forward_has_the_gradients_of_the_first(case: str, fused: bool | None) -> None:
    x, found = data(10)[0], []
    for mode in ("full", None):
        keras.utils.set_random_seed(5)
        norm = BatchNormalization(fused=fused, **REREAD[case])
        with keras.RematScope(mode=mode):
            block = keras.Sequential([norm, layers.Activation("tanh")])
        model = keras.Sequential([keras.Input((4,)), layers.Dense(4), block])
        fitted(model, x, x, 0.1)
        found.append([numpy(w) for w in model.weights])
    for repeated, once in zip(*found, strict=True):
        assert_same_to_project_bound(repeated, once)


OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.05),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.05),
    "Adam": lambda: keras.optimizers.Adam(0.05),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_moves_gamma_and_beta_alike(optimizer: str) -> None:
    x, found = data(), []
    for kind in KINDS:
        norm = kind()
        model = alone(norm)
        model.compile(OPTIMIZERS[optimizer](), "mse", jit_compile=False)
        model.fit(x[0], x[1] + x[0], batch_size=8, epochs=2, shuffle=False, verbose=0)
        found.append([numpy(v) for v in norm.weights])
    for mine, other, start in zip(*found, (1.0, 0.0, 0.0, 1.0), strict=True):
        assert (mine != start).all()
        assert_same_to_project_bound(mine, other)


def test_regularizers_add_losses() -> None:
    norm = BatchNormalization(
        gamma_regularizer=keras.regularizers.L2(0.5), beta_regularizer=keras.regularizers.L1(0.25)
    )
    model = alone(norm)
    norm.set_weights([np.full(4, 2.0), np.full(4, -3.0), *norm.get_weights()[2:]])
    assert sum(numpy(loss) for loss in model.losses) == 0.5 * 4 * 2.0**2 + 0.25 * 4 * 3.0
    x = data()[0]
    model.compile("sgd", "mse")
    plain = np.mean((model.predict(x, verbose=0) - x) ** 2)
    assert model.evaluate(x, x, verbose=0) == pytest.approx(plain + 11.0, rel=PROJECT_BOUND)


def test_constraints_act() -> None:
    constraint = keras.constraints.MaxNorm(0.5, axis=0)
    norm, x = BatchNormalization(gamma_constraint=constraint, beta_constraint="non_neg"), data()[0]
    fitted(alone(norm), x, 3.0 * x - 30.0, epochs=1)  # which pulls γ above, and β below
    assert_close(np.linalg.norm(numpy(norm.gamma)), 0.5, "float32")
    assert_same_to_project_bound(numpy(norm.beta), np.zeros(4))


def test_a_batch_with_inf_is_not_remembered() -> None:
    x = data(20)[0]
    x[13, 2] = np.inf
    norm = BatchNormalization(momentum=0.5)
    fitted(alone(norm), x, np.zeros_like(x), 0.0)  # of two batches, the second holds it
    assert_same_to_project_bound(moving(norm)["moving_mean"], 0.5 * x[:10].mean(0))
    assert_same_to_project_bound(moving(norm)["moving_variance"], 0.5 + 0.5 * x[:10].var(0))


@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 4}, {"fused": False}], ids=str)
@pytest.mark.parametrize("samples", [0, 1])
def test_the_smallest_batches(samples: int, options: dict[str, Any]) -> None:
    x = data(1)[0][:samples]
    norm = BatchNormalization(momentum=0.5, **options)
    y = numpy(alone(norm)(x, training=True))
    assert y.shape == (samples, 4)
    seen, expected = moving(norm), 0.5 * x.sum(0)
    assert_same_to_project_bound(seen["moving_mean"], expected)
    assert_same_to_project_bound(seen["moving_variance"], np.full(4, 0.5 if samples else 1.0))
    assert_same_to_project_bound(y, np.zeros_like(x))
