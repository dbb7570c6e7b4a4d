"""Freed activation maps stay with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from src.allocator import keep_freed_memory
import torch
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
for _ in range(30):
    maps = [torch.ones(1 << 22) for _ in range(4)]  # 16 MB each
    del maps
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(mode: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, env=environment
    )
    if done.returncode == 3:
        pytest.skip("this C library has no mallopt")
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_repeated_maps_do_not_fault_their_pages_in_again():
    kept = page_faults("keep")
    loads = page_faults("default", MALLOC_MMAP_THRESHOLD_="1000000")
    assert loads - kept > 200_000  # 29 rounds of 4 x 4096 pages, less a margin


def test_settings_of_the_user_are_left_alone(monkeypatch):
    from src.allocator import keep_freed_memory

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert keep_freed_memory() is False
