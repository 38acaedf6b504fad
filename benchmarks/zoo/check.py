"""A check: a function that returns a figure where all is right, and raises where it is not."""

import importlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import nn

from batchnorm.errors import BatchNormError
from batchnorm.torch import BatchNorm

Status = Literal["ok", "refused", "fails", "WRONG", "torch fails", "left out"]
CHARACTERS = 400  # of a message


class WrongError(AssertionError):
    """Something came out that is not right."""


class TorchFailsError(Exception):
    """The same fails with torch's own layers, so that it says nothing of ours."""


class RefusedError(Exception):
    """It was refused, by a message that names the layer and the way out."""


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        name: What was checked, as group/subject/what.
        status: "refused" by name; "fails" in another way; "torch fails" at the same; "left out" where a package is not
            installed.
        figure: The figure, or the message.
        seconds: How long it took.
    """

    name: str
    status: Status
    figure: str
    seconds: float


@dataclass(frozen=True)
class Check:
    """One check, its name, and the packages that it needs."""

    name: str
    function: Callable[[], str]
    needs: tuple[str, ...] = ()

    def run(self) -> Outcome:
        """Run it, whatever it raises."""
        start = time.perf_counter()
        status, figure = self._outcome()
        return Outcome(self.name, status, " ".join(figure.split())[:CHARACTERS], round(time.perf_counter() - start, 1))

    def _outcome(self) -> tuple[Status, str]:
        for package in self.needs:
            try:
                importlib.import_module(package)
            except Exception as error:  # also where what it was built for is not here
                return "left out", f"{package}: {error}"
        try:
            return "ok", self.function()
        except RefusedError as refusal:
            return "refused", str(refusal)
        except TorchFailsError as failure:
            return "torch fails", str(failure)
        except WrongError as wrong:
            return "WRONG", str(wrong)
        except Exception as error:
            return "fails", f"{type(error).__name__}: {error}"


CHECKS: list[Check] = []


def check(name: str, *needs: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a function as the check of this name."""

    def register(function: Callable[[], str]) -> Callable[[], str]:
        CHECKS.append(Check(name, function, needs))
        return function

    return register


def require(right: bool, otherwise: str) -> None:
    """Raise `WrongError`, with what is the case instead, unless it is right."""
    if not right:
        raise WrongError(otherwise)


@contextmanager
def torch_first() -> Iterator[None]:
    """Run a block with torch's own layers: what fails in it fails without us."""
    try:
        yield
    except Exception as error:
        raise TorchFailsError(f"{type(error).__name__}: {error}") from error


@contextmanager
def may_refuse(model: nn.Module) -> Iterator[None]:
    """Run a block that may raise, if the message names a layer of the model and says what to do instead."""
    names = [n for name, m in model.named_modules() if isinstance(m, BatchNorm) for n in (name, type(m).__name__) if n]
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BatchNormError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or not any(_names(str(cause), name) for name in names) or not _way_out(str(cause)):
            raise
        raise RefusedError(str(cause)) from error


def _names(message: str, layer: str) -> bool:
    return bool(re.match(rf"(\S+\.)?{re.escape(layer)}( \(|:)", message))  # a wrapper may stand ahead of the name


def _way_out(message: str) -> bool:
    return any(word in message for word in ("convert", "eval()", "fold", "first", "choose", "keep", "narrow", "use "))
