"""A contender that is ready."""

from collections.abc import Callable
from typing import NamedTuple

from batchnorm.bench.truth import Outputs


class Prepared(NamedTuple):
    """A contender that is ready for one case.

    Attributes:
        step: What is timed.
        outputs: What gives the outputs to check, features by `truth.checked_features`; None for a copy.
        kernel: Which kernel of ours runs; None for others.
    """

    step: Callable[[], object]
    outputs: Callable[[], Outputs] | None = None
    kernel: str | None = None
