"""Models in files written by others, with every batch normalization in them read as this layer."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from batchnorm.errors import ArgumentError

SYNCHRONIZED = "SyncBatchNormalization"
CLASSES = ("BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2", SYNCHRONIZED)
FUNCTIONAL = ("Functional", "Model")
OURS = {
    "module": "batchnorm.keras",
    "class_name": "BatchNormalization",
    "registered_name": "batchnorm>BatchNormalization",
}
OURS_IN_H5 = {"class_name": "batchnorm>BatchNormalization"}  # where a class goes by its registered name

MOVED = {  # where a module of Keras 2 is now, for want of which Keras 3 reads no functional model of it
    "tf_keras.src.engine.functional": "keras.src.models.functional",
    "keras.src.engine.functional": "keras.src.models.functional",
}


def load_model(path: str | Path, **options: Any) -> Any:
    """Return the model in a file, with every batch normalization in it as `batchnorm.keras.BatchNormalization`.

    Reads what `keras.models.load_model` reads: `.keras` files, and the H5 files of Keras 1 and 2 and of tf.keras, whose
    lists of axes and virtual batches Keras' own reader loses or refuses. The file stays as it is.

    Args:
        path: Ends in .keras, .h5 or .hdf5.
        **options: As keras.models.load_model takes them (custom_objects, compile, safe_mode).

    Raises:
        ArgumentError: if the file is of another kind, or there is none, or it is a .keras file with a
            SyncBatchNormalization.

    Differs:
        keras.models.load_model gives Keras' layer, which has no virtual batches, adjustment or lists of axes; from an
        H5 file a list of axes becomes −1, silently.
    """
    source = Path(path)
    rewrite = {".keras": _rewrite_archive, ".h5": _rewrite_h5, ".hdf5": _rewrite_h5}.get(source.suffix)
    if rewrite is None or not source.is_file():
        raise ArgumentError(f"`path` must be an existing .keras, .h5 or .hdf5 file, got {str(path)!r}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / source.name
        try:
            rewrite(source, copy)
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise ArgumentError(
                f"`path` must hold a model, got {str(path)!r}: {error} (weights alone: make the model, "
                "then `load_weights`)"
            ) from error
        return keras.saving.load_model(copy, **options)


def _parts(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the configuration of every layer and model inside another one, however deep."""
    if isinstance(config, dict):
        if config.get("class_name") == "Sequential" and isinstance(config["config"], list):  # Keras 2.0: a bare list
            config["config"] = {"name": "sequential", "layers": config["config"]}
        if isinstance(config.get("config"), dict) and "class_name" in config:
            yield config
        for value in config.values():
            yield from _parts(value)
    elif isinstance(config, list):
        for value in config:
            yield from _parts(value)


def _adopt(config: dict[str, Any], names: dict[str, str]) -> list[dict[str, Any]]:
    """Make every batch normalization one of ours, and return their arguments; mend what Keras 3 reads wrongly.

    `names` are for layers of a model; one inside another layer goes by its module in every kind of file.
    """
    adopted: list[dict[str, Any]] = []
    parts = list(_parts(config))
    direct = [id(layer) for part in parts for layer in part["config"].get("layers", [])]
    for part in parts:
        own = part["config"]
        if isinstance(own.get("dtype"), dict) and own["dtype"].get("class_name") == "Policy":  # of Keras 2
            own["dtype"] = own["dtype"]["config"]["name"]
        if part["class_name"] in FUNCTIONAL and "output_layers" in own:
            _renumber(own)
        elif part["class_name"] in CLASSES and part.get("registered_name") in (None, part["class_name"]):
            if part["class_name"] == SYNCHRONIZED:
                own["synchronized"] = True
            if isinstance(own.get("axis"), list):
                own["kept_axes"] = own["axis"]
            part.update(names if id(part) in direct else OURS)
            adopted.append(own)
    return adopted


def _renumber(model: dict[str, Any]) -> None:
    """Count the calls of models inside this one from 0: Keras 2 counted their making as a call, Keras 3 does not."""
    layers = model["layers"]
    inner = {layer["name"]: layer["class_name"] for layer in layers if _counted(layer)}
    calls = [call for layer in layers for call in layer["inbound_nodes"]]
    if any(isinstance(call, dict) for call in calls):  # Keras 3's own writing
        return
    for tensor in (tensor for call in calls for tensor in call):
        tensor[1] -= tensor[0] in inner
    for tensor in (tensor for tensor in model["output_layers"] if isinstance(tensor, list)):
        tensor[1] -= inner.get(tensor[0]) == "Sequential"  # of the others Keras thinks there


def _counted(layer: dict[str, Any]) -> bool:
    """Return whether Keras 2 counted the making of a model as a call: where its input was known from the start."""
    inside = layer["config"].get("layers", [])
    return layer["class_name"] in (*FUNCTIONAL, "Sequential") and [a["class_name"] for a in inside[:1]] == [
        "InputLayer"
    ]


def _rewrite_archive(source: Path, copy: Path) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(copy, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename == "config.json":
                config = json.loads(content)
                if any(part["class_name"] == SYNCHRONIZED for part in _parts(config)):
                    raise ArgumentError(
                        f"`path` must not be a .keras file with a {SYNCHRONIZED} in it, whose weights Keras looks for "
                        f"under this name, got {str(source)!r} (save the model as .h5)"
                    )
                _adopt(config, OURS)
                content = json.dumps(config)
                for then, now in MOVED.items():
                    content = content.replace(f'"{then}"', f'"{now}"')
            new.writestr(item, content)


def _rewrite_h5(source: Path, copy: Path) -> None:
    import h5py

    shutil.copyfile(source, copy)
    with h5py.File(copy, "r+") as file:
        written: Any = file.attrs["model_config"]
        config = json.loads(written)
        layers = _adopt(config, OURS_IN_H5)
        file.attrs["model_config"] = json.dumps(config)
        for own in (own for own in layers if own.get("virtual_batch_size") is not None):
            _ungroup(file["model_weights"], own["name"], len(own.get("kept_axes", [-1])))


def _ungroup(weights: Any, layer: str, axes: int) -> None:
    """Take out of a classic layer's weights the axis of groups, which stands behind the batch axis."""
    import h5py

    datasets: list[str] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and layer in name.split("/"):
            if item.external or item.is_virtual:  # Keras refuses them too: they read other files
                raise ArgumentError(f"`path` must hold its own weights, got a link to another file under {name!r}")
            datasets.append(name)

    weights.visititems(note)
    for name in datasets:
        values = weights[name][()]
        if values.ndim < 2:
            continue
        del weights[name]
        weights[name] = values.reshape(-1) if axes == 1 else values.squeeze(1)
