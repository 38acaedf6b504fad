"""The passes over the data, the only code that has to be fast; each kernel is a file or a folder.

Every kernel offers the same functions on the same shapes: `interface.py`. `dispatch.py` decides which serves a call.
"""

from batchnorm.kernels.dispatch import Backend, Choice, register, registered, select
from batchnorm.kernels.interface import BackwardResult, Facts, ForwardResult, Kernel, Mode, OneCallKernel, one_call
from batchnorm.kernels.native import abi, numpy

__all__ = [
    "Backend", "BackwardResult", "Choice", "Facts", "ForwardResult", "Kernel", "Mode", "OneCallKernel", "available",
    "one_call", "register", "registered", "select",
]  # fmt: skip

CUDA = "PyTorch's own kernels, for plain calls on a GPU"
numpy.register()


def available() -> dict[str, str]:
    """Return each kernel of this installation with a description."""
    library = abi.load()
    if isinstance(library, str):
        return {"native": f"missing: {library}", "cuda": CUDA, "eager": "framework operations"}
    built = f"{library.instruction_set}, {library.threads} threads of its own, or those of PyTorch"
    return {
        "native": f"C++ on a CPU, {built}",
        "cuda": CUDA,
        "eager": "framework operations, for what the native kernel does not serve",
    }
