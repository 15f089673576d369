"""What a training step on the CPU frees stays with the process.

A step allocates and frees hundreds of MB of activations. glibc gives large blocks back to the system (from which size
on follows from what was freed before: ``mallopt(3)``), and the next step pays for every page once more: the kernel maps
and clears it, and it is in no cache.
"""

from __future__ import annotations

import ctypes

from prism_fast.config import malloc_is_set

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_MOST = 2**31 - 1  # mallopt takes an int
_MMAP_THRESHOLDS = (2**30, 2**25)  # older versions of glibc refuse more than 32 MiB


def keep_freed_memory() -> bool:
    """Lets the whole process keep what it frees, from now on; its peak stays what it was.

    Returns:
        Whether it does: not where the environment sets what this would, nor with a C library that is not glibc.
    """
    if malloc_is_set():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Not the one for trimming alone: to set any of them ends the adapting of all, and the other's default is 128 KiB.
    if not any(mallopt(_M_MMAP_THRESHOLD, size) for size in _MMAP_THRESHOLDS):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _MOST))
