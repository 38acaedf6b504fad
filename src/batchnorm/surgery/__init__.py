"""Tools that change models which already exist: each returns a report of what it has done."""

from importlib.util import find_spec

from batchnorm.errors import MissingExtraError

for _module in ("torch", "safetensors"):
    if find_spec(_module) is None:
        raise MissingExtraError("batchnorm.surgery", _module, "torch")

from batchnorm.surgery.adapt import Adapted, adapt  # noqa: E402
from batchnorm.surgery.convert import convert  # noqa: E402
from batchnorm.surgery.fold import fold  # noqa: E402
from batchnorm.surgery.insert import insert  # noqa: E402
from batchnorm.surgery.recalibrate import recalibrate  # noqa: E402
from batchnorm.surgery.report import Change, Left, Report  # noqa: E402
from batchnorm.surgery.transfer import Transferred, transfer  # noqa: E402

__all__ = [
    "Adapted", "Change", "Left", "Report", "Transferred",
    "adapt", "convert", "fold", "insert", "recalibrate", "transfer",
]  # fmt: skip
