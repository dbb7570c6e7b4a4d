"""Places where a process can run: one per GPU, or one per group of CPU cores."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from src.errors import ConfigError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Slot:
    """One place; `environment` confines a process to it."""

    name: str
    environment: Mapping[str, str]


def find_slots(count: int | None, cores_per_job: int, jobs_per_gpu: int) -> list[Slot]:
    """The slots of this machine.

    Args:
        count: how many processes at most; None: one per GPU, without a GPU as many as fit.
        cores_per_job: CPU cores of a process on a machine without a GPU.
        jobs_per_gpu: processes that share one GPU.
    """
    for name, value in (("slots", count), ("cores_per_job", cores_per_job)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1.", found=str(value), do=f"set {name}=1")
    gpus = visible_gpus()
    if gpus:
        slots = [_gpu_slot(gpu) for _ in range(jobs_per_gpu) for gpu in gpus]
        return slots[:count] if count else slots
    free = usable_cores()
    wanted = count or max(1, free // cores_per_job)
    threads = str(max(1, min(cores_per_job, free // wanted)))
    environment = dict.fromkeys(THREAD_VARIABLES, threads)
    return [Slot(f"cpu{index}", environment) for index in range(wanted)]


def visible_gpus() -> list[str]:
    """Indices or ids of the GPUs this process may use, without loading torch."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [part for part in allowed.split(",") if part.strip() not in ("", "-1")]
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return listing.stdout.split()


def usable_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_slot(gpu: str) -> Slot:
    return Slot(f"gpu{gpu}", {"CUDA_VISIBLE_DEVICES": gpu})
