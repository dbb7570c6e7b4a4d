"""Where the time of one image goes, and what an export saves: milliseconds, two runs in turn.

    python tests/bench/bench_latency.py runs/patchcore/... [runs/uflow/... ...]

For each run: decoding a test picture from its file, transform, network with search and map
(PyTorch, one image and sixteen), and the exported files (ONNX, OpenVINO) from an array in memory
with resize, model and decision inside. The ways take turns, image by image, so that a busy machine
slows all of them; the median is printed and, for the exports, how often they are faster than
PyTorch with the same work.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from src.commands.export import FORMATS, Exported
from src.data.images import read_sample
from src.detector import Detector, data_of

ROUNDS = 30
SOME = 16


def clock(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each way, in turn."""
    taken: dict[str, list[float]] = defaultdict(list)
    for turn in range(ROUNDS + 3):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if turn >= 3:
                taken[name].append(1e3 * (time.perf_counter() - began))
    return {name: float(np.median(values)) for name, values in taken.items()}


def exported(detector: Detector, image: np.ndarray) -> dict[str, Callable[[], object]]:
    """The detector in each format that runs here, on one image (h, w, 3)."""
    module, ways = Exported(detector, image.shape[:2]).eval(), {}
    two = torch.from_numpy(np.stack([image] * 2))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("onnx", "openvino"):
            ending, write, runner, _ = FORMATS[name]
            path = Path(folder) / f"detector{ending}"
            write(module, two, path, OmegaConf.create({"opset": 18}), {})
            run = runner(path)
            ways[f"{name}, from array"] = lambda run=run: run(image[None])
    return ways


def table(folder: Path) -> None:
    detector = Detector.load(folder, "cpu")
    model, transform = detector.model, detector.transform
    sample = data_of(detector.config).test_samples[0]
    picture = read_sample(sample)
    one = transform(picture)[None]
    many = one.repeat(SOME, 1, 1, 1)

    def inferred(images: torch.Tensor) -> object:
        with torch.inference_mode():
            return model(images)

    ways: dict[str, Callable[[], object]] = {
        "decode the file": lambda: read_sample(sample),
        "resize, crop, normalise": lambda: transform(picture),
        "model": lambda: inferred(one),
        f"model, {SOME} at once": lambda: inferred(many),
        "PyTorch, from array to decision": lambda: detector.detect([picture]),
    }
    if hasattr(model, "backbone") and hasattr(model, "memories"):
        grids = model.patches(one)
        ways["of it the network"] = lambda: model.patches(one)
        ways["of it the search"] = lambda: model.memories[0].score(grids[0])
    times = clock(ways | exported(detector, np.asarray(picture)))
    print(f"\n{type(model).__name__}, {picture.size[0]} x {picture.size[1]} -> "
          f"{tuple(one.shape[2:])}, {torch.get_num_threads()} threads\n")  # fmt: skip
    print("| step | ms an image |\n|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value / (SOME if 'at once' in name else 1):.1f} |")
    whole = times["PyTorch, from array to decision"]
    for name in ("onnx, from array", "openvino, from array"):
        print(f"{name}: {whole / times[name]:.2f} times PyTorch")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        table(Path(argument))
