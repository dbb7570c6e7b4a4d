"""How fast and how large: latency of single images, peak memory of this (the first) process."""

import re
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


@torch.inference_mode()
def measure_latency(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], images: int
) -> dict[str, float]:
    """Milliseconds from a normalised image on the device to score and map on the CPU, batch 1.

    The first two images warm up and do not count. Decoding is not included. Computed as
    `src.predict` does: on the device where the model is, in float32.
    """
    model.eval()
    device = next(iter(model.parameters()), torch.zeros(0)).device
    singles = (image[None] for batch in batches for image in batch["image"])
    seconds: list[float] = []
    for count, image in enumerate(singles):
        if count >= images + 2:
            break
        image = image.to(device)
        began = time.perf_counter()
        prediction = model(image)
        prediction.anomaly_map.cpu()
        seconds.append(time.perf_counter() - began)
    timed = np.asarray(seconds[2:] or seconds or [np.nan]) * 1e3
    return {
        "speed/latency_p50_ms": float(np.percentile(timed, 50)),
        "speed/latency_p95_ms": float(np.percentile(timed, 95)),
        "speed/images_per_second": float(1e3 / timed.mean()),
    }


def peak_memory_mb() -> float:
    """Highest memory so far in MB: of the GPU when one is in use, else of this process."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")  # getrusage also counts the parent at the fork
    text = status.read_text() if status.is_file() else ""
    if found := re.search(r"VmHWM:\s*(\d+) kB", text):
        return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
