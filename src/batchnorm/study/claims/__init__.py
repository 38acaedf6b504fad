"""The claims, one file each: a module here with a `CLAIM` is a claim. The order is that of a report."""

import importlib
import pkgutil

from batchnorm.study.data import DataError
from batchnorm.study.findings import Claim

ORDER = (
    "speed",
    "score",
    "learning-rate",
    "initialization",
    "batch-size",
    "placement",
    "alternatives",
    "input-scaling",
    "regularization",
    "noise-law",
    "exploding-gradients",
    "covariate-shift",
    "landscape",
    "limits",
    "scale-shift",
    "train-predict",
)
ALL = "all"
# What the answer rests on, and a check; the others explain it.
QUICK = ("speed", "score", "learning-rate", "batch-size", "placement", "input-scaling", "train-predict")


def all_claims() -> dict[str, Claim]:
    """Return every claim by id: those of `ORDER` first, then any others by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = {module.CLAIM.id: module.CLAIM for module in modules}
    rank = {claim: i for i, claim in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], len(ORDER)), item[0])))


def chosen_claims(names: str | None, *, quick: bool = False) -> list[Claim]:
    """Return the claims that a comma-separated list names; all of them if it is "all" or None.

    Args:
        names: The list.
        quick: Whether None stands for those of a quick study.

    Raises:
        DataError: if there is no such claim.
    """
    known = all_claims()
    if names is None:
        names = ",".join(QUICK) if quick else ALL
    if names.strip() == ALL:
        return list(known.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise DataError(f"there is no claim {name!r}; there are: {', '.join(known)}")
    if not wanted:
        raise DataError(f"--claims names no claim; there are: {', '.join(known)}")
    return [claim for claim in known.values() if claim.id in wanted]
