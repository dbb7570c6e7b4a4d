"""How the C library treats freed memory during a run."""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = {
    _MMAP_THRESHOLD: 32 << 20,  # the largest glibc accepts; larger blocks still come and go
    _TRIM_THRESHOLD: 1 << 30,
    _TOP_PAD: 64 << 20,
}


def keep_freed_memory() -> bool:
    """Let the process reuse freed blocks below 32 MB instead of returning them each time.

    Every batch allocates the same activation maps again. By default glibc takes each from the
    system and gives it back, and the kernel clears every page anew: a quarter of the CPU time of a
    PatchCore run on two cores. Settings of the environment (MALLOC_*) have precedence.

    Returns: whether the settings hold; other C libraries have none and need none.
    """
    if sys.platform != "linux" or any(key.startswith("MALLOC_") for key in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(key, value) == 1 for key, value in _SETTINGS.items())
