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

CLASSES = ("BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2", "SyncBatchNormalization")
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
        ArgumentError: if the file is of another kind, or there is none.

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
        rewrite(source, copy)
        return keras.saving.load_model(copy, **options)


def _layers(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the configuration of every batch normalization inside another one, however deep."""
    if isinstance(config, dict):
        if config.get("class_name") in CLASSES and isinstance(config.get("config"), dict):
            yield config
        for value in config.values():
            yield from _layers(value)
    elif isinstance(config, list):
        for value in config:
            yield from _layers(value)


def _adopted(layer: dict[str, Any], by: dict[str, str]) -> None:
    """Make a layer's configuration one of ours."""
    own = layer["config"]
    if layer["class_name"] == "SyncBatchNormalization":
        own["synchronized"] = True
    if isinstance(own.get("axis"), list):
        own["kept_axes"] = own["axis"]
    layer.update(by)


def _rewrite_archive(source: Path, copy: Path) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(copy, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename == "config.json":
                for layer in list(_layers(config := json.loads(content))):
                    _adopted(layer, OURS)
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
        grouped = {}
        for layer in list(_layers(config)):
            _adopted(layer, OURS_IN_H5)
            own = layer["config"]
            if own.get("virtual_batch_size") is not None:
                grouped[own["name"]] = len(own["axis"]) if isinstance(own["axis"], list) else 1
        file.attrs["model_config"] = json.dumps(config)
        for name, axes in grouped.items():
            _ungroup(file["model_weights"], name, axes)


def _ungroup(weights: Any, layer: str, axes: int) -> None:
    """Take out of a classic layer's weights the axis of groups, which stands behind the batch axis."""
    import h5py

    found: list[str] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and layer in name.split("/"):
            found.append(name)

    weights.visititems(note)
    for name in found:
        values = weights[name][()]
        if values.ndim < 2:
            continue
        del weights[name]
        weights[name] = values.reshape(-1) if axes == 1 else values.squeeze(1)
