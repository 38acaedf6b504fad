"""What batch normalization does on your data, measured: the claims of the textbooks, each with its verdict."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from batchnorm.errors import MissingExtraError

if TYPE_CHECKING:
    from batchnorm.study.design import Settings
    from batchnorm.study.runner import Results, run

__all__ = ["Results", "Settings", "run"]

for _module in ("torch", "sklearn", "scipy", "pandas", "matplotlib", "jinja2", "pyarrow", "openpyxl"):
    if find_spec(_module) is None:
        raise MissingExtraError("batchnorm.study", _module, "study")


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: worker processes need the training only."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from batchnorm.study import design, runner

    return getattr(design if name == "Settings" else runner, name)
