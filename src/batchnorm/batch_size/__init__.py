"""Which batch size, and why: four limits measured, the samples of a step and those normalised together told apart."""

from importlib.util import find_spec

from batchnorm.errors import MissingExtraError

for _module in ("torch", "psutil"):
    if find_spec(_module) is None:
        raise MissingExtraError("batchnorm.batch_size", _module, "torch")

from batchnorm.batch_size.advice import Advice, Limit  # noqa: E402
from batchnorm.batch_size.advise import advise  # noqa: E402
from batchnorm.batch_size.work import Loop  # noqa: E402

__all__ = ["Advice", "Limit", "Loop", "advise"]
