"""Scalars of a study for TensorBoard: the median curves of both sides in one diagram, and the effects."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from batchnorm.errors import ArgumentError, MissingExtraError

if TYPE_CHECKING:
    from batchnorm.study.runner import Results

SIDES = {"none": "without batch normalization", "before": "with batch normalization"}


class Scalar(NamedTuple):
    """One number: in which run it stands, under which tag, at which step."""

    run: str
    tag: str
    value: float | None
    step: int


def scalars(results: "dict[str, Any]") -> Iterator[Scalar]:
    """Yield the median test scores by step, rate by rate, and value and interval of every effect."""
    for network, curves in results["explore"].items():
        for side, by_rate in curves["sides"].items():
            for rate, curve in by_rate.items():
                tag = f"{curves['score']}, {network}/learning rate {rate}"
                for step, score in zip(curve["steps"], curve["median"], strict=True):
                    yield Scalar(SIDES[side], tag, score, step)
    for claim in results["claims"]:
        for effect in claim["effects"]:
            tag = f"{claim['id']}/" + ", ".join(word for word in (effect["part"], effect["name"]) if word)
            for run, key in (("effects", "value"), ("effects, low", "low"), ("effects, high", "high")):
                yield Scalar(run, tag, effect[key], 0)


def write(results: "Results", folder: Path) -> None:
    """Write the scalars of a study under a folder, each run in a folder of its own.

    Raises:
        MissingExtraError: if TensorBoard is not installed.
        ArgumentError: if the folder cannot be written.
    """
    from batchnorm.outputs import plain

    try:
        logging.getLogger("tensorflow").setLevel(logging.ERROR)  # which TensorBoard imports where it is installed
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("--tensorboard", "tensorboard", "tensorboard") from None
    writers: dict[str, Any] = {}
    try:
        for scalar in scalars(plain(results.reproducible)):
            if scalar.value is not None:
                if scalar.run not in writers:
                    writers[scalar.run] = SummaryWriter(str(folder / scalar.run))
                writers[scalar.run].add_scalar(scalar.tag, scalar.value, scalar.step)
    except OSError as error:
        raise ArgumentError(f"--tensorboard {folder} cannot be written: {error.strerror}") from None
    finally:
        for writer in writers.values():
            writer.close()
