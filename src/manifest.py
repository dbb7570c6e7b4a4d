"""What ran: everything needed to say later why a number is what it is."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytorch_lightning as pl

PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "timm", "faiss-cpu", "faiss-gpu", "FrEIA",
    "kornia", "numpy", "scipy", "scikit-image", "pillow", "hydra-core",
)  # fmt: skip


def describe_run(data_fingerprint: str, weights: str | None) -> dict[str, Any]:
    """Facts of this run: code, packages, machine, data and weights (all JSON)."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "code": describe_code(Path(__file__).parent.parent),
        "packages": describe_packages(),
        "machine": describe_machine(),
        "data_fingerprint": data_fingerprint,
        "weights": weights,
    }


def describe_code(folder: Path) -> dict[str, Any]:
    """Git commit and a digest of uncommitted changes; empty outside a checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    changes = _git(folder, "diff", "HEAD", "--", "src", "conf") or ""
    digest = hashlib.sha256(changes.encode()).hexdigest()[:16] if changes else None
    return {"commit": commit.strip(), "dirty": digest}


def describe_packages() -> dict[str, str]:
    """Versions of the packages that can change a number."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_machine() -> dict[str, Any]:
    """Python, processor and accelerator."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def describe_device(trainer: pl.Trainer) -> dict[str, Any]:
    """What the run computes on, and in how many processes."""
    import torch

    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return {"device": name, "processes": trainer.world_size}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
