"""Batch normalization for Keras 3, on any of its backends, with every argument of the classic layer."""

from importlib.util import find_spec

from batchnorm.errors import MissingExtraError

if find_spec("keras") is None:
    raise MissingExtraError("batchnorm.keras", "Keras 3 and a backend (TensorFlow, JAX or PyTorch)", "keras")

from batchnorm.keras.layer import BatchNormalization
from batchnorm.keras.legacy import load_model
from batchnorm.renorm import Inverse, Ramp

__all__ = ["BatchNormalization", "Inverse", "Ramp", "load_model"]
