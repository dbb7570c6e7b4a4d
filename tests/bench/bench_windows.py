"""Whether a hair scratch on a 12-megapixel picture is found: whole and shrunk, or through windows.

    python -m tests.bench.bench_windows [FOLDER]

Draws twelve good pictures of brushed metal, 4000 x 3000 pixels, and one with a scratch of 12 x 2
pixels; fits PatchCore on them as `src.run` does, once with the default view of `data=folder` and
once through windows at half the resolution. Prints decision, seconds and the process's peak memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from src.saved_run import SavedRun

WIDE, HIGH, GOOD = 4000, 3000, 12
WAYS = {
    "whole, 224 x 224": [],
    "windows, 2000 x 1500": [
        "data.view.resize=[1500,2000]", "model.windows.size=448", "model.score=max",
        "model.coreset.ratio=0.002",
    ],
}  # fmt: skip


def brushed_metal(seed: int) -> np.ndarray:
    """Grey levels (3000, 4000) uint8: strokes along the rows, grain, uneven light."""
    draws = np.random.default_rng(seed)
    strokes = draws.normal(0, 1, (HIGH, WIDE + 80)).astype(np.float32).cumsum(axis=1)
    strokes = (strokes[:, 80:] - strokes[:, :-80]) / 80**0.5  # mean of 80 pixels, unit variance
    grain = draws.normal(0, 3, (HIGH, WIDE)).astype(np.float32)
    light = 12 * np.sin(np.linspace(0, 3, WIDE) + draws.uniform(0, 3))
    return np.clip(140 + 8 * strokes + grain + light, 0, 255).astype(np.uint8)


def scratched(metal: np.ndarray) -> Image.Image:
    """A scratch 12 pixels long and 2 wide, across the strokes."""
    image = Image.fromarray(metal)
    ImageDraw.Draw(image).line([(2710, 1290), (2716, 1300)], fill=40, width=2)
    return image


def draw(root: Path) -> None:
    """Folders good and bad, unless they are there."""
    for name in ("good", "bad"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if (root / "bad" / "scratch.png").is_file():
        return
    for i in range(GOOD):
        Image.fromarray(brushed_metal(i)).save(root / "good" / f"{i}.png", compress_level=1)
    scratched(brushed_metal(GOOD)).save(root / "bad" / "scratch.png", compress_level=1)


def run(root: Path, words: list[str]) -> tuple[SavedRun, float, float]:
    """The finished run, its seconds and its peak memory in MB."""
    runs = root / "runs" / str(len(words))
    command = [
        sys.executable, "-m", "src.run", "backbone=efficientnet_lite0", "data=folder",
        f"data.root={root}", "data.normal_dir=good", "data.abnormal_dir=bad", "data.batch_size=1",
        "hardware.num_workers=0", "evaluation.latency_images=2", f"runs_dir={runs}", "force=true",
        *words,
    ]  # fmt: skip
    began = time.perf_counter()
    child = subprocess.Popen(command)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit("the run failed")
    seconds = time.perf_counter() - began
    done = next(runs.rglob("metrics.json")).parent
    return SavedRun(done), seconds, used.ru_maxrss / 1000


def main(root: Path) -> None:
    """Draw, fit both ways, print a line for each."""
    draw(root)
    lines = []
    for name, words in WAYS.items():
        found, seconds, megabytes = run(root, words)
        scores = found.scores()
        bad, good = scores[scores.label == 1], scores[scores.label == 0]
        lines.append(
            f"{name:22} {'found' if bad.decision.all() else 'MISSED':8} "
            f"score {bad.score.iloc[0]:.4g} of the scratch, good up to {good.score.max():.4g}, "
            f"threshold {found.read_json('model/threshold.json')['image']:.4g}, "
            f"{good.decision.sum()} of {len(good)} false alarms; {seconds:.0f} s, "
            f"peak {megabytes:.0f} MB"
        )
    print(*lines, sep="\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
