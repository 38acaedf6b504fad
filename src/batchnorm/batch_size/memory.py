"""How large a batch fits: bytes as a line in B, and the largest size that has really been run.

On a CPU: the bytes that autograd saves for the backward, each storage once, which is exact and needs nothing to fail.
On a GPU: the peaks of the allocator over whole steps. A size is named only once a step of that size has run.
"""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from batchnorm.errors import ArgumentError
from batchnorm.outputs import told

SIZES = 3
SPARED = 0.10  # of what is free, for whatever else the machine does meanwhile
WORST_FIT = 0.05
CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
NOTICED = 64 << 20  # bytes: below, the growth of a process says little


class Meter(Protocol):
    """How a device's memory is measured.

    Attributes:
        source: What is measured, in words.
        careful: Whether running out of it may end the process.
    """

    source: str
    careful: bool

    def bytes(self, step: Callable[[], object]) -> int:
        """Run a step and return the bytes it needed beside what was there before."""
        ...

    def available(self) -> int:
        """Return the bytes that are free for steps now."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""
        ...


def _own_cgroups(root: Path, told: Path) -> list[Path]:
    """Return the folder of this process's control group and of those around it."""
    with suppress(OSError, StopIteration):
        lines = told.read_text("ascii").splitlines()
        inside = next(line for line in lines if line.startswith("0::")).removeprefix("0::").strip("/")
        own = root / inside
        return [own, *(p for p in own.parents if p.is_relative_to(root))]
    return [root]


def free_in_cgroup(root: Path = CGROUP, told: Path = OWN_CGROUP) -> float:
    """Return the bytes that control groups leave free; infinity where there is none, or none with a limit."""
    free = [math.inf]
    for folder in _own_cgroups(root, told):
        with suppress(OSError, ValueError):
            limit, used = (int((folder / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
            reclaimable = 0
            with suppress(OSError, ValueError, StopIteration):
                lines = (folder / "memory.stat").read_text("ascii").splitlines()
                reclaimable = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
            free.append(float(max(limit - used + reclaimable, 0)))
    return min(free)


def highest() -> int:
    """Return the most bytes that this process has ever held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


class SavedTensors:
    """Counts what autograd saves: for the CPU, and whatever device has no better."""

    source, careful = "bytes saved for the backward", True

    def __init__(self, model: nn.Module, synchronize: Callable[[], None] = lambda: None) -> None:
        """Take the model, whose parameters and buffers are there anyway and not counted; and how to wait for it."""
        self._model, self._synchronize = model, synchronize

    def bytes(self, step: Callable[[], object]) -> int:
        """Run a step and return the bytes of every storage that was saved in it, each once."""
        own = {t.untyped_storage().data_ptr() for t in (*self._model.parameters(), *self._model.buffers())}
        saved: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            with suppress(RuntimeError, NotImplementedError):  # tensors without a storage of their own
                storage = x.untyped_storage()
                if storage.data_ptr() not in own:
                    saved[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            step()
        return sum(saved.values())

    def available(self) -> int:
        """Return the free bytes of the machine, or of the control group if that has less."""
        return int(min(psutil.virtual_memory().available, free_in_cgroup()))

    def synchronize(self) -> None:
        """Wait for the device; a CPU is done when the call returns."""
        self._synchronize()


class Allocator:
    """Reads the peaks of a GPU's allocator.

    Attributes:
        memory: `torch.cuda`, or what answers like it.
    """

    source, careful = "peaks of the allocator", False

    def __init__(self, memory: Any, device: torch.device | None = None) -> None:
        """Take the module that knows the allocator, and which of its devices is meant."""
        self.memory, self._device = memory, device

    def bytes(self, step: Callable[[], object]) -> int:
        """Run a step and return by how much the peak rose above what was allocated before."""
        self.memory.synchronize(self._device)
        before = self.memory.memory_allocated(self._device)
        self.memory.reset_peak_memory_stats(self._device)
        step()
        self.memory.synchronize(self._device)
        return self.memory.max_memory_allocated(self._device) - before

    def available(self) -> int:
        """Return what is free on the device, with what the allocator holds and does not use."""
        self.memory.empty_cache()
        free, _ = self.memory.mem_get_info(self._device)
        return free + self.memory.memory_reserved(self._device) - self.memory.memory_allocated(self._device)

    def synchronize(self) -> None:
        """Wait for the device."""
        self.memory.synchronize(self._device)


def meter(model: nn.Module, device: torch.device) -> Meter:
    """Return how memory is measured on a device: by its allocator, if that can be asked."""
    if device.type == "cpu":
        return SavedTensors(model)
    module: Any = torch.get_device_module(device)
    if all(hasattr(module, name) for name in ("max_memory_allocated", "mem_get_info")):
        return Allocator(module, device)
    return SavedTensors(model, module.synchronize)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


@dataclass
class Memory:
    """What is known of memory.

    Attributes:
        source: What was measured.
        available: Bytes that were free for steps.
        bytes: What a step of each size needed.
        ran: The sizes of which whole steps have run.
        failed: The smallest size that ran out of memory, or failed otherwise; None if none did.
        failure: How a step failed, if not for want of memory; "" if none did.
        base: Bytes that the process held at first.
        grown: How many more a step of a size made it hold, where that was more than ever: on a CPU it tells what the
            line leaves out, what is needed for a moment only.
    """

    source: str
    available: int
    bytes: dict[int, int] = field(default_factory=dict[int, int])
    ran: set[int] = field(default_factory=set[int])
    failed: int | None = None
    failure: str = ""
    base: int = field(default_factory=lambda: psutil.Process().memory_info().rss)
    grown: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def line(self) -> tuple[float, float]:
        """Bytes whatever the size, and bytes a sample."""
        sizes = np.array(sorted(self.bytes), float)
        needed = np.array([max(self.bytes[int(size)], 1) for size in sizes], float)
        if len(sizes) < 2:
            return 0.0, float(needed[0] / sizes[0])
        design = np.stack([1 / needed, sizes / needed], 1)
        fixed, per_sample = np.linalg.lstsq(design, np.ones(len(sizes)), rcond=None)[0]
        return float(fixed), float(per_sample)

    @property
    def error(self) -> float:
        """The largest |line/measured − 1|."""
        fixed, per_sample = self.line
        return max(abs((fixed + size * per_sample) / max(needed, 1) - 1) for size, needed in self.bytes.items())

    @property
    def projected(self) -> float:
        """The size at which the line, or the growth of the process, reaches what is available, a tenth of it spared."""
        usable = (1 - SPARED) * self.available
        fixed, per_sample = self.line
        ends = [max((usable - fixed) / per_sample, 0.0) if per_sample > 0 else math.inf]
        ends += [usable / grown * size for size, grown in self.grown.items() if grown > NOTICED]
        return min(ends)

    @property
    def largest(self) -> int:
        """The largest size that has run."""
        return max(self.ran, default=0)

    @property
    def obstacle(self) -> str:
        """Why a step of the size that failed did not run."""
        return f"failed, {self.failure}" if self.failure else "does not fit in memory"

    def fits(self, size: int) -> bool:
        """Whether a size may be tried: below whatever failed, and within the line."""
        return (self.failed is None or size < self.failed) and (not self.bytes or size <= self.projected)

    def attempt(self, size: int, step: Callable[[], None]) -> bool:
        """Run a step of a size and note whether it does; an error that has nothing to do with the size is raised.

        A model that runs smaller batches only may be given those: what is larger counts as too large.
        """
        before = highest()
        try:
            step()
        except Exception as error:
            if not is_out_of_memory(error):
                if isinstance(error, ArgumentError) or size <= self.largest or not self.ran:
                    raise
                self.failure = told(error)
            self.failed = size if self.failed is None else min(size, self.failed)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return False
        self.ran.add(size)
        if highest() > before:
            self.grown[size] = highest() - self.base
        return True


def spread(sizes: Sequence[int], most: int = SIZES) -> list[int]:
    """Return sizes to draw a line through: small ones, and not too near to one another.

    >>> spread([4, 8, 16, 32, 64, 128]), spread([4, 8, 16])
    ([4, 16, 64], [4, 8, 16])
    """
    apart = list(sizes[: 2 * most - 1 : 2])
    return apart if len(apart) == most else list(sizes[:most])


def friendly(size: float) -> int:
    """Return the largest hardware-friendly size up to a number: a power of two, or such a one and a half times.

    >>> [friendly(s) for s in (1, 5, 50, 100, 800)]
    [1, 4, 48, 96, 768]
    """
    power = 1 << max(int(size), 1).bit_length() - 1
    return power + power // 2 if power >= 16 and power + power // 2 <= size else power


def verify(
    memory: Memory, step: Callable[[int], None], *, most: int, enough: Callable[[int], bool], careful: bool = False
) -> None:
    """Look for the largest size that runs, from the line: try what it names, and halve the distance after a failure.

    Args:
        memory: What is known; sizes that run or fail are noted in it.
        step: `(size)`: one whole step.
        most: No larger size makes sense: the rows there are.
        enough: `(size)`: whether there is no time for a step of that size.
        careful: Whether to double the size at most, and to look at what that took: where memory runs out without an
            error that could be caught.
    """
    while True:
        ceiling = min(most, memory.projected, (memory.failed or most + 1) - 1)
        if careful:
            ceiling = min(ceiling, 2 * max(memory.largest, 1))
        if memory.failed is not None:
            ceiling = min(ceiling, (memory.largest + memory.failed) / 2)
        size = friendly(ceiling)
        if size <= memory.largest or enough(size):
            return
        memory.attempt(size, lambda size=size: step(size))
