"""What runs on several replicas, devices or processes: the cases, their data, and what each place makes of them.

As a program, `on_replicas.py FOLDER`, it runs on what the backend has of it, and leaves the answers and the models in
the folder. Devices are settled when a backend starts, which is why this is a process of its own.
"""

import pickle
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import keras
import numpy as np
from differentiate import BACKEND, Array, Call, called, moving, numpy

from batchnorm.errors import BatchNormError
from batchnorm.keras import BatchNormalization

REPLICAS, DEVICES, PROCESSES = 2, 4, 2
SECONDS = 90.0
FEATURES, STEPS = 4, 2
BATCH, EPOCHS, RATE, MOMENTUM = 8, 2, 0.02, 0.7
KINDS: dict[str, Any] = {"ours": BatchNormalization, "keras": keras.layers.BatchNormalization}
START: dict[str, Any] = {
    "gamma_initializer": keras.initializers.RandomUniform(0.5, 1.5, seed=1),
    "beta_initializer": keras.initializers.RandomUniform(-0.5, 0.5, seed=2),
    "momentum": MOMENTUM,
}
RENORM = {"renorm": True, "renorm_clipping": {"rmin": 0.5, "rmax": 2.0, "dmax": 1.5}, "renorm_momentum": 0.8}


@dataclass(frozen=True)
class Case:
    """Two training steps, every replica with samples of its own."""

    sizes: tuple[int, int] = (8, 8)  # samples on each replica
    heard: tuple[int, int] | None = None  # how many of them a mask leaves
    options: dict[str, Any] = field(default_factory=dict)
    within: tuple[int, ...] = ()  # axes of a sample, but its features
    mean: float = 2.0  # in standard deviations
    weighted: bool = False


UNEVEN = {"sizes": (14, 14), "heard": (3, 11)}
TOGETHER = {
    "equal counts": Case(),
    "unequal counts": Case((3, 11)),
    "images": Case((2, 3), within=(3, 5)),
    "uneven masks": Case(**UNEVEN),
    "uneven masks, images": Case((4, 4), (1, 3), within=(3, 5)),
    "weights": Case(**UNEVEN, weighted=True),
    "the first masked altogether": Case((14, 14), (0, 11)),
    "the last masked altogether": Case((14, 14), (11, 0)),
    "all masked altogether": Case((3, 4), (0, 0)),
    "one without samples": Case((9, 0)),
    "a sample each": Case((1, 1)),
    "a large mean": Case((3, 11), mean=1e4),
    "a large mean and uneven masks": Case(**UNEVEN, mean=1e4),
    "renorm": Case((3, 11), options=RENORM),
    "renorm and uneven masks": Case(**UNEVEN, options=RENORM),
    "renorm, one masked altogether": Case((14, 14), (11, 0), options=RENORM),
    "unbiased": Case(**UNEVEN, options={"running_variance": "unbiased"}),
    "activation": Case((3, 11), options={"activation": "relu"}),
}
APART = {
    "not synchronized": Case(),
    "not synchronized, unequal counts": Case((3, 11)),
    "not synchronized, uneven masks": Case(**UNEVEN),
    "not synchronized, one without samples": Case((9, 0)),
    "virtual batches, synchronized": Case(options={"virtual_batch_size": 4, "synchronized": True}),
    "virtual batches, one without samples": Case((9, 0), options={"virtual_batch_size": 4, "synchronized": True}),
}
KERAS = ("equal counts", "unequal counts", "images", "uneven masks", "a large mean")
FULL, RAGGED = 4 * BATCH, 4 * BATCH + 1  # samples of an epoch; the last batch of the second leaves a replica none


@dataclass(frozen=True)
class Fit:
    """A model fitted to vectors, or to sequences under a mask."""

    options: dict[str, Any]
    kind: str = "ours"
    number: int = FULL
    masked: bool = False


FITS = {
    "tensorflow": {
        "synchronized": Fit({"synchronized": True}),
        "synchronized, a ragged end": Fit({"synchronized": True}, number=RAGGED),
        "synchronized, masked": Fit({"synchronized": True}, masked=True),
        "synchronized, masked, renorm": Fit({"synchronized": True, **RENORM}, masked=True),
        "not synchronized": Fit({}, number=RAGGED),
        "keras": Fit({"synchronized": True}, kind="keras"),
    },
    "jax": {
        "synchronized": Fit({"synchronized": True}),
        "synchronized, masked": Fit({"synchronized": True}, masked=True),
        "not synchronized": Fit({}),
        "not synchronized, masked, renorm": Fit(RENORM, masked=True),
        "virtual batches": Fit({"virtual_batch_size": 4, "synchronized": True}),
    },
    "torch": {},
}[BACKEND]


def data(case: Case, step: int) -> tuple[Array, Array, dict[str, Any]]:
    """Return x, dy and the arguments of the call, of all replicas; each has a mean of its own."""
    rng = np.random.default_rng(step)
    shape = (sum(case.sizes), *case.within, FEATURES)
    shift = np.repeat([0.0, 2.0], case.sizes).reshape(-1, *(1 for _ in shape[1:]))
    x, dy = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    call: dict[str, Any] = {"training": True}
    if case.heard is not None:
        heard = np.concatenate([np.arange(n) < k for n, k in zip(case.sizes, case.heard, strict=True)])
        call["mask"] = np.broadcast_to(heard.reshape(-1, *(1 for _ in case.within)), shape[:-1])
    if case.weighted:
        call["mask"] = call["mask"] * rng.uniform(0.5, 2.0, shape[:-1]).astype(np.float32)
    return (x + shift + case.mean).astype(np.float32), dy, call


def parts(case: Case, step: int) -> list[tuple[Array, Array, dict[str, Any]]]:
    """Return the same, replica by replica."""
    x, dy, call = data(case, step)
    mask = call.get("mask")
    ends = np.cumsum(case.sizes)
    own = [slice(end - n, end) for n, end in zip(case.sizes, ends, strict=True)]
    return [(x[i], dy[i], call if mask is None else {**call, "mask": mask[i]}) for i in own]


def made(kind: str, case: Case, **options: Any) -> Any:
    layer = KINDS[kind](**{**START, **options, **case.options})
    layer.build((None, *case.within, FEATURES))
    return layer


def samples(fit: Fit) -> tuple[Array, Array]:
    """Return inputs and targets; they drift, so that every part of a batch has statistics of its own."""
    rng = np.random.default_rng(fit.number)
    shape = (fit.number, *((5,) if fit.masked else ()), FEATURES)
    drift = np.arange(fit.number).reshape(-1, *(1 for _ in shape[1:])) / BATCH
    x, target = rng.normal(2.0, 3.0, shape) + drift, rng.normal(size=(fit.number, 1))
    if fit.masked:  # the first half of a batch, one replica's, keeps a step of each sequence; the other half four
        kept = np.where(np.arange(fit.number) % BATCH < BATCH // 2, 1, 4)
        x *= (np.arange(5) < kept[:, None])[..., None]
    return x.astype(np.float32), target.astype(np.float32)


def fitted(scope: AbstractContextManager[Any], fit: Fit) -> tuple[Any, dict[str, Array]]:
    """Return a model fitted in a scope, and by name its weights, what it predicts and the losses."""
    x, target = samples(fit)
    keras.utils.set_random_seed(0)
    with scope:
        inner = [KINDS[fit.kind](**START, **fit.options, name="norm")]
        if fit.masked:
            inner = [keras.layers.Masking(), *inner, keras.layers.GlobalAveragePooling1D()]
        model = keras.Sequential([keras.Input(x.shape[1:]), *inner, keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(RATE), "mse")
    losses = model.fit(x, target, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0).history["loss"]
    found = {v.name: numpy(v) for v in model.weights}
    return model, {**found, "predicted": model.predict(x[:BATCH], verbose=0), "loss": np.array(losses)}


def on_devices(folder: Path) -> dict[Any, Any]:
    """JAX: fit the models with their batches spread over all devices."""
    devices = keras.distribution.list_devices()
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    answers: dict[Any, Any] = {}
    for name, fit in FITS.items():
        model, answers["fit", name] = fitted(nullcontext(), fit)
        answers["devices", name] = len(model.get_layer("norm").moving_mean.value.sharding.device_set)
        model.save(folder / f"{name}.keras")
    return answers


def on_replicas(folder: Path) -> dict[Any, Any]:
    """TensorFlow: call the layers, and fit the models, on each replica of a strategy."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * REPLICAS)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])

    def steps(kind: str, case: Case, **options: Any) -> list[Any]:
        with strategy.scope():
            layer = made(kind, case, **options)
        return [_step(strategy, layer, parts(case, step)) for step in range(STEPS)]

    answers: dict[Any, Any] = {("ours", name): steps("ours", TOGETHER[name], synchronized=True) for name in TOGETHER}
    answers |= {("ours", name): steps("ours", case) for name, case in APART.items()}
    answers |= {("keras", name): steps("keras", TOGETHER[name], synchronized=True) for name in KERAS}
    answers |= {("keras, apart", name): steps("keras", TOGETHER[name]) for name in ("equal counts", "uneven masks")}
    answers["not finite"] = _not_finite(strategy)
    for name, fit in FITS.items():
        model, answers["fit", name] = fitted(strategy.scope(), fit)
        model.save(folder / f"{name}.keras")
    return answers


def _step(strategy: Any, layer: Any, own: list[tuple[Array, Array, dict[str, Any]]]) -> tuple[list[Call], list[Any]]:
    """Call the layer on every replica; return what each has found, and what each then remembers."""
    import tensorflow as tf

    found: dict[int, Call] = {}

    def on_one() -> None:
        i = int(tf.distribute.get_replica_context().replica_id_in_sync_group)
        x, dy, call = own[i]
        found[i] = called(layer, x, dy, **call)

    strategy.run(on_one)
    kept = {v.name: strategy.experimental_local_results(v.value) for v in layer.non_trainable_variables}
    everyone = range(REPLICAS)
    return [found[i] for i in everyone], [{name: a[i].numpy() for name, a in kept.items()} for i in everyone]


def _not_finite(strategy: Any) -> list[Any]:
    """Return what every replica remembers after a batch with one inf on one of them."""
    own = parts(Case(), 0)
    own[1][0][0, 0] = np.inf
    with strategy.scope():
        layer = made("ours", Case(), synchronized=True)
    return _step(strategy, layer, own)[1]


def in_group(rank: int, folder: Path) -> None:
    """PyTorch: one process of a group of several."""
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    meeting = (folder / "meeting").as_uri()
    limit = timedelta(seconds=SECONDS)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=limit)
    x, dy, call = parts(Case(), 0)[rank]
    answers: dict[str, Any] = {}
    for name, options in {"whole": {}, "virtual": {"virtual_batch_size": 4}}.items():
        layer = made("ours", Case(), synchronized=True, **options)
        answers[name, "inferred"] = _or_error(lambda layer=layer: numpy(layer(x, training=False)))
        answers[name, "trained"] = _or_error(lambda layer=layer: called(layer, x, dy, **call))
        answers[name, "moving"] = moving(layer)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(answers))
    distributed.destroy_process_group()


def _or_error(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except BatchNormError as error:
        return str(error)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    answered = on_replicas(place) if BACKEND == "tensorflow" else on_devices(place)
    (place / "answers.pickle").write_bytes(pickle.dumps(answered))
