"""Whether memory that is freed is kept: fresh pages cost often as much as the kernel that fills them."""

import ctypes
import os

MODES = ("kept", "default")
# What users set to have it so, before the process starts; glibc only. Processes that are timed do not inherit it.
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep() -> bool:
    """Tell glibc to keep freed memory: mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2³¹−1).

    Returns:
        Whether it does; False where the C library is not glibc.
    """
    if os.name != "posix":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
