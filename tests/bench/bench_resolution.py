"""How much the grid of the pixel metrics changes them, on real images, and what each grid costs.

    python tests/bench/bench_resolution.py           the table of docs/metrics.md

Every set below DATA_DIR is tried, see bench_decisions.py: PatchCore on EfficientNet-Lite0, 1 %,
the settings of a laptop. The images are scored once; evaluators of all grids see the same maps.
Runs are kept in runs/laptop: what is finished is not run again.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from pathlib import Path

import torch
from bench_decisions import sets

from src.composing import compose
from src.detector import Detector, checked_data
from src.evaluation.evaluator import build_evaluator
from src.experiment import run_experiment

COLUMNS = ("pixel_auroc", "pixel_ap", "aupro", "aupro_05", "aupimo", "pixel_f1", "pixel_f1_max")


def grids(seen: tuple[int, int]) -> dict[str, list[str]]:
    """What the network sees, the default, and the original: name -> words."""
    return {
        f"{max(seen)}x{max(seen)}, as the network": [f"evaluation.size={max(seen)}"],
        "256x256": ["evaluation.size=256"],
        "original": ["evaluation.size=original"],
        "original, whole image": ["evaluation.size=original", "evaluation.whole_image=true"],
    }


def main(runs: str) -> None:
    print("| set | grid | " + " | ".join(COLUMNS) + " | s | MB |")
    print("|---|---|" + "---|" * (len(COLUMNS) + 2))
    for name, words in sets().items():
        words = [*words, "model=patchcore", f"runs_dir={runs}"]
        run = run_experiment(compose("run", words)).run
        detector = Detector.load(run.directory, "cpu")
        data, threshold = checked_data(run, None), detector.threshold
        with torch.inference_mode():
            found = [(b, detector.model(b["image"]).cpu()) for b in data.test_dataloader()]
        for grid, more in grids(detector.transform.size).items():
            if grid.endswith("whole image") and not detector.transform.crops:
                continue
            cfg = compose("run", [*words, *more])
            tracemalloc.start()
            began = time.perf_counter()
            evaluator = build_evaluator(cfg, data.transform, data.samples, detector.model.roi)
            for batch, prediction in found:
                evaluator.update(batch, prediction)
            metrics = evaluator.compute(threshold, data.samples)
            seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            cells = [f"{metrics[f'test/{key}']:.4f}" for key in COLUMNS]
            print(f"| {name} | {grid} | {' | '.join(cells)} | {seconds:.0f} | {peak / 1e6:.0f} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/laptop")
