"""Where the time of one image goes, and what an export saves: milliseconds, all ways in turn.

    python -m tests.bench.bench_latency runs/patchcore/... [runs/uflow/... ...] [side=900]

For each run: the steps of one image in PyTorch, and the whole way to a decision from an array in
memory and from a PNG on disk, one image and sixteen at once, by PyTorch and by the exported files
(ONNX, OpenVINO), which hold resize, model and decision. `side`: the picture is enlarged to so many
pixels first. The ways take turns, so that a busy machine slows all of them; the median and the
fastest round are printed (of an idle machine both are alike), and how often the exports are faster
than PyTorch with the same work.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from src.commands.export import FORMATS, Exported, Runner, completed
from src.composing import compose
from src.data.images import open_rgb, read_sample
from src.detector import Detector, data_of
from src.models.patchcore.module import PatchCore

SOME = 16
Way = Callable[[], object]


class Taken(NamedTuple):
    """Milliseconds of one way."""

    median: float
    least: float


def clock(ways: dict[str, Way], rounds: int) -> dict[str, Taken]:
    """Each way in turn; those of many images in a third of the rounds."""
    taken: dict[str, list[float]] = defaultdict(list)
    for turn in range(-3, rounds):
        for name, way in ways.items():
            if str(SOME) in name and turn % 3:
                continue
            began = time.perf_counter()
            way()
            if turn >= 0:
                taken[name].append(1e3 * (time.perf_counter() - began))
    return {name: Taken(float(np.median(all_)), min(all_)) for name, all_ in taken.items()}


def exports(
    detector: Detector, size: tuple[int, int], folder: Path
) -> Iterator[tuple[str, Runner]]:
    """The detector in each format that runs here, for images of `size` (h, w)."""
    module, two = Exported(detector, size).eval(), torch.zeros(2, *size, 3, dtype=torch.uint8)
    for name in ("onnx", "openvino"):
        ending, write, runner, _ = FORMATS[name]
        path = folder / f"detector{ending}"
        write(module, two, path, compose("export", [f"run={folder}", f"format={name}"]), {})
        title = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}[name]
        yield title, completed(detector, module.outputs, runner(path))


def steps(detector: Detector, picture: Image.Image, file: Path) -> dict[str, Way]:
    """The steps of one image in PyTorch."""
    model, array = detector.model, np.asarray(picture)
    one = detector.transform(picture)[None]
    found = model(one)
    ways: dict[str, Way] = {
        "decode the PNG": lambda: detector.read(file),
        "resize, crop, normalise": lambda: detector.transform(array),
        "model": lambda: model(one),
        "decision": lambda: detector.decide(found),
    }
    if isinstance(model, PatchCore) and len(model.memories) == 1:
        memory, (maps,) = model.memory, model.backbone(one)
        patches = memory.patches(maps)
        scored = [memory.score(patches)]
        size = (one.shape[2], one.shape[3])
        ways |= {
            "of the model: network": lambda: model.backbone(one),
            "of the model: patch vectors": lambda: memory.patches(maps),
            f"of the model: search in {len(memory.bank):,} rows": lambda: memory.score(patches),
            "of the model: map": lambda: model._combined(scored, size),
        }
    return ways


def whole(detector: Detector, file: Path, runners: dict[str, Runner]) -> dict[str, Way]:
    """From array or file to a decision, one image and many, by PyTorch and the exported files."""
    array = np.asarray(open_rgb(file))
    ways: dict[str, Way] = {}
    everyone = {"PyTorch": lambda images: detector.detect(list(images))} | runners
    for name, run in everyone.items():
        for count in (1, SOME):
            images = np.stack([array] * count)
            ways[f"{name}, {count} from array"] = lambda run=run, images=images: run(images)

        def read(run: Runner = run) -> object:
            return run(np.asarray(open_rgb(file))[None])

        ways[f"{name}, 1 from PNG"] = read
    ways["PyTorch, 1 from PNG"] = lambda: detector.detect([detector.read(file)])  # no array between
    return ways


def table(folder: Path, side: int | None = None, rounds: int = 30) -> dict[str, Taken]:
    """Print and return what each way takes, milliseconds a call."""
    detector = Detector.load(folder, "cpu")
    picture = read_sample(data_of(detector.config).test_samples[0])
    if side is not None:
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "picture.png"
        picture.save(file)
        size = (picture.height, picture.width)
        runners = dict(exports(detector, size, Path(name)))
        with torch.inference_mode():
            ways = steps(detector, picture, file) | whole(detector, file, runners)
            times = clock(ways, rounds)
        print(f"\n{type(detector.model).__name__}, {size[1]} x {size[0]} -> "
              f"{detector.transform.size}, {file.stat().st_size / 1e3:.0f} kB, "
              f"{torch.get_num_threads()} threads\n")  # fmt: skip
    print("| way | ms an image | fastest |\n|---|---|---|")
    for name, taken in times.items():
        many = SOME if f", {SOME} " in name else 1
        print(f"| {name} | {taken.median / many:.1f} | {taken.least / many:.1f} |")
    for name in runners:
        for of in ("1 from array", f"{SOME} from array", "1 from PNG"):
            ratio = times[f"PyTorch, {of}"].median / times[f"{name}, {of}"].median
            print(f"{name}, {of}: {ratio:.2f} times as fast as PyTorch")
    return times


if __name__ == "__main__":
    sides = [int(word.removeprefix("side=")) for word in sys.argv[1:] if word.startswith("side=")]
    for argument in sys.argv[1:]:
        if not argument.startswith("side="):
            table(Path(argument), *sides)
