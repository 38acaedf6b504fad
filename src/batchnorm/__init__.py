"""Batch normalization, complete: one definition, at home in PyTorch, Keras 3 and JAX.

Importing this package imports NumPy at most and touches no device. Each framework has its own door:

* `batchnorm.torch`: layers with torch's names, defaults and state_dict keys
* `batchnorm.keras`: the layer with the classic Keras signature, on TensorFlow, JAX and PyTorch
* `batchnorm.study`: what batch normalization does on your data, measured
* `batchnorm.reference`: the definition in float64 NumPy, in the symbols of the paper

Source: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
Shift", ICML 2015.
"""

__version__ = "0.1.0"

_ELSEWHERE = {  # what people look for here first
    "torch": ("BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm", "frozen", "Renorm"),
    "keras": ("BatchNormalization",),
    "surgery": ("convert", "fold", "insert", "recalibrate"),
    "batch_size": ("advise",),
}


def __getattr__(name: str) -> object:
    """Say where a name is that lies in a part of the package: parts are imported by those who want them."""
    for part, names in _ELSEWHERE.items():
        if name in names:
            raise ImportError(f"{name} is in batchnorm.{part}: from batchnorm.{part} import {name}")
    raise AttributeError(f"module 'batchnorm' has no attribute {name!r}")
