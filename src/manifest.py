"""What ran: everything needed to say later why a number is what it is."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "timm", "faiss-cpu", "faiss-gpu", "FrEIA",
    "kornia", "numpy", "scipy", "pillow", "hydra-core",
)  # fmt: skip


def describe_run(data_fingerprint: str, weights: str | None) -> dict[str, Any]:
    """Facts of this run: code, packages, machine, data and weights (all JSON)."""
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    commit = _git("rev-parse", "HEAD")  # None outside a checkout
    changes = _git("diff", "HEAD", "--", "../src", "../conf") if commit else None
    dirty = hashlib.sha256(changes.encode()).hexdigest()[:16] if changes else None
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "code": {"commit": commit and commit.strip(), "dirty": dirty},
        "packages": packages,
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "processor": next(models, platform.processor() or platform.machine()),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
            "cuda": torch.version.cuda if gpus else None,
        },
        "data_fingerprint": data_fingerprint,
        "weights": weights,
    }


def describe_device(trainer: pl.Trainer) -> dict[str, Any]:
    """What the run computes on, and in how many processes."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return {"device": name, "processes": trainer.world_size}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    return None
