"""Which kernel serves a call: for each array namespace an ordered list of backends, asked one after another."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from batchnorm.kernels.eager import EagerKernel
from batchnorm.kernels.interface import Facts, Kernel
from batchnorm.statistics import Namespace


@dataclass(frozen=True)
class Backend:
    """A kernel with the calls that it serves.

    Attributes:
        name: As users read it.
        device: The type of the devices that it runs on.
        supports: `(facts) -> None` where it serves such a call, else the reason why it does not.
        kernel: `(facts) -> Kernel` for a call that it serves.
    """

    name: str
    device: str
    supports: Callable[[Facts], str | None]
    kernel: Callable[[Facts], Kernel]


class Choice(NamedTuple):
    """The kernel that serves a call, and why no faster one does; "" where it is the fastest."""

    kernel: Kernel
    reason: str


@dataclass
class Registered:
    """The kernels of one array namespace; `plans` are those of earlier calls, which hold what was chosen."""

    eager: EagerKernel
    backends: tuple[Backend, ...] = ()
    plans: dict[Any, Any] = field(default_factory=dict[Any, Any])


SWITCHED_OFF = (  # read once: a compiler that traces a call does not read the environment
    'the environment says BATCHNORM_KERNEL="eager"' if os.environ.get("BATCHNORM_KERNEL") == "eager" else ""
)
_REGISTERED: dict[str, Registered] = {}


def register(xp: Namespace, *backends: Backend, cascade: bool = False) -> None:
    """Name the kernels of an array namespace when its front-end is imported: not while a compiler traces.

    Args:
        xp: The array namespace.
        *backends: The fastest first. Behind the last of them stands the eager kernel, which serves everything.
        cascade: Whether the namespace adds in a tree, not one value after another.
    """
    _REGISTERED[xp.__name__] = Registered(EagerKernel(xp, cascade=cascade), backends)


def registered(xp: Namespace) -> Registered:
    """Return the kernels of an array namespace; the eager one alone where none was registered."""
    return _REGISTERED.get(xp.__name__) or Registered(EagerKernel(xp))


def select(facts: Facts, xp: Namespace) -> Choice:
    """Return the first kernel that serves a call, with the first reason why a faster one does not."""
    kernels = registered(xp)
    if SWITCHED_OFF:
        return Choice(kernels.eager, SWITCHED_OFF)
    refusals: list[str] = []
    for backend in kernels.backends:
        if backend.device == facts.device:
            refusal = backend.supports(facts)
            if refusal is None:
                return Choice(backend.kernel(facts), refusals[0] if refusals else "")
            refusals.append(refusal)
    if not refusals and kernels.backends:
        refusals.append(f"the native kernel runs on a CPU, the input is on {facts.device}")
    return Choice(kernels.eager, refusals[0] if refusals else "this version has no native kernel for such arrays")
