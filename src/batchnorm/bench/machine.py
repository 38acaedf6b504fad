"""What a run ran on."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm import __version__

BUSY = 0.25  # of the processors, over the last minute
REMARK = "the machine was busy before the run"


def usable_processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    names = {key.strip(): value.strip() for key, value in facts.items()}
    model = names.get("model name", platform.machine())
    family = (f"{key} {names[key]}" for key in ("cpu family", "model") if key in names)
    return f"{model} ({', '.join(family)})"


def busy() -> str | None:
    """Return a remark where others are at work on this machine: times, and ratios too, are then noise."""
    if not hasattr(os, "getloadavg"):
        return None
    load = os.getloadavg()[0]
    return f"{REMARK}: a load of {load:.1f}" if load > BUSY * usable_processors() else None


def machine() -> dict[str, Any]:
    """Return the processor, how many there are, the system and the versions of what runs everywhere."""
    return {
        "cpu": processor(),
        "cores": usable_processors(),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver()).strip() or 'C library'}",
        "versions": {"batchnorm": __version__, "python": sys.version.split()[0], "numpy": np.__version__},
    }
