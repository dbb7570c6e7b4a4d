"""What a detector decides: defects found and false alarms at promised rates, on real images.

    python tests/bench/bench_decisions.py                 one run a set, the table of README
    python tests/bench/bench_decisions.py methods         every method at its laptop budget
    python tests/bench/bench_decisions.py methods crn     one of them, of the sets that are there
    python tests/bench/bench_decisions.py halves 50       random halves of the good pictures
    python tests/bench/bench_decisions.py halves 50 bottle      of one set

Every set below DATA_DIR is tried: folders with `train/good` and `test`. The settings are those of a
laptop, the same for all sets: EfficientNet-Lite0, 1 %, cross-calibration.

`methods` keeps its runs in runs/laptop: what is finished is not run again.

`halves` asks whether the promise is kept: half of a set's good pictures, drawn at random, are
learnt and calibrated on, the others are new parts. The parts are exchangeable, so what is measured
is the method, not the difference between one day's pictures and another's.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import beta

from src.composing import compose
from src.data.datamodule import AnomalyDataModule
from src.evaluation.threshold import Conformal
from src.experiment import run_experiment
from src.models.build import build_model
from src.models.patchcore.memory import PatchMemory
from src.result import Calibration, NormalScores

ALPHAS = (0.01, 0.05, 0.1)
WAYS = (Calibration.cross, Calibration.leave_one_out)

#: Method -> the words of its laptop budget, and seeds; cheap ones show their spread.
METHODS = {
    "pixel_statistics": (["model=pixel_statistics"], 3),
    "patchcore": (["model=patchcore", "backbone=efficientnet_lite0"], 3),
    "uflow": (["experiment=uflow_small"], 1),
    "haloae": (["experiment=haloae_small"], 1),
    "crn": (["experiment=crn_small"], 3),
}
COLUMNS = ("image_auroc", "pixel_auroc", "aupro", "recall", "false_alarm_rate")


def sets() -> dict[str, list[str]]:
    """Name of each set -> the words that choose it."""
    root = Path(os.environ.get("DATA_DIR", "data"))
    found = {}
    for folder in sorted(path.parent.parent for path in root.glob("*/*/train/good")):
        words = [f"data.root={folder.parent}", f"data.category={folder.name}", "data=mvtec"]
        if folder.parent.name != "mvtec":  # whole pictures in their own shape
            words = [f"data.root={folder}", "data=folder", "data.normal_dir=train/good",
                     "data.normal_test_dir=test/good", "data.mask_dir=ground_truth"]  # fmt: skip
            defects = [p.name for p in sorted((folder / "test").iterdir()) if p.name != "good"]
            words.append(f"data.abnormal_dir=test/{defects[0]}")
        found[folder.name] = ["backbone=efficientnet_lite0", *words]
    return found


def interval(hits: int, total: int) -> str:
    """A share with its exact 95 % interval (Clopper and Pearson)."""
    low = beta.ppf(0.025, hits, total - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, total - hits) if hits < total else 1.0
    return f"{hits}/{total} ({low:.2f}-{high:.2f})"


def table() -> None:
    found: list[float] = []
    print("| set | image AUROC | AUPRO | s | " + " | ".join(
        f"found, false alarms at {alpha:g}" for alpha in ALPHAS) + " |")  # fmt: skip
    print("|---|---|---|---|" + "---|" * len(ALPHAS))
    for name, words in sets().items():
        with tempfile.TemporaryDirectory() as runs:
            began = time.perf_counter()
            result = run_experiment(compose("run", [*words, f"runs_dir={runs}"]))
            seconds = time.perf_counter() - began
            normal, scores = result.run.calibration(), result.run.scores()
        cells = []
        for alpha in ALPHAS:
            alarm = scores["score"] > Conformal(alpha).fit(normal).image
            defect = scores["label"] == 1
            cells.append(
                f"{interval(int(alarm[defect].sum()), int(defect.sum()))}, "
                f"{interval(int(alarm[~defect].sum()), int((~defect).sum()))}"
            )
            if alpha == 0.05:
                found.append(float(alarm[defect].mean()))
        metrics = result.metrics
        print(f"| {name} | {metrics['test/image_auroc']:.4f} | {metrics['test/aupro']:.4f} | "
              f"{seconds:.0f} | " + " | ".join(cells) + " |", flush=True)  # fmt: skip
    print(f"mean share of defects found at 0.05: {np.mean(found):.3f}, least {min(found):.3f}")


def methods(chosen: list[str]) -> None:
    """Each method of `chosen` (all, if empty) on each set: mean over seeds, +- half the range."""
    print("| set | method | image AUROC | pixel AUROC | AUPRO | found | false alarms | fit, s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, words in sets().items():
        for method, (budget, seeds) in METHODS.items():
            if chosen and method not in chosen:
                continue
            rows = []
            for seed in range(seeds):
                kept = [*budget, *words[1:], f"seed={seed}", "runs_dir=runs/laptop"]
                metrics = run_experiment(compose("run", kept)).metrics
                rows.append([metrics[f"test/{key}"] for key in COLUMNS] + [metrics["fit/seconds"]])
            low, high = np.min(rows, axis=0), np.max(rows, axis=0)
            cells = [
                f"{mean:.3f}" + (f" +- {(b - a) / 2:.3f}" if b > a else "")
                for mean, a, b in zip(np.mean(rows, axis=0)[:-1], low, high, strict=False)
            ]
            line = " | ".join([name, method, *cells, f"{np.mean(rows, axis=0)[-1]:.0f}"])
            print(f"| {line} |", flush=True)


def halves(splits: int, chosen: list[str]) -> None:
    for name, words in sets().items():
        if chosen and name not in chosen:
            continue
        cfg = compose("run", words)
        data = AnomalyDataModule(cfg)
        data.setup()
        model = build_model(cfg, data.image_size)
        network, options = model.backbone[0].eval(), model.options
        patches = []
        with torch.inference_mode():
            for loader in (data.ordered_train_dataloader(), data.test_dataloader()):
                for batch in loader:
                    maps = [part[batch["label"] == 0] for part in network(batch["image"])]
                    if len(maps[0]):
                        patches.append(model.memory.embedder(maps))
        grids = torch.cat(patches)
        rates: dict[tuple[Calibration, float], list[float]] = {}
        for split in range(splits):
            order = torch.randperm(len(grids), generator=torch.Generator().manual_seed(split))
            learnt, new = order[: len(grids) // 2], order[len(grids) // 2 :]
            memory = PatchMemory(network.channels, options, None)
            memory.fit_basis(grids[learnt])
            known, index = memory.scaled(grids[learnt]), torch.arange(len(learnt))
            memory.reduce(memory.bank, known, index)
            fresh = memory.score(memory.scaled(grids[new])).image
            for way in WAYS:
                held = (memory.cross if way == Calibration.cross else memory.held_out)(known, index)
                for alpha in ALPHAS:
                    threshold = Conformal(alpha).fit(NormalScores(held.image, held.image)).image
                    rates.setdefault((way, alpha), []).append(
                        float((fresh > threshold).double().mean())
                    )
        for (way, alpha), values in rates.items():
            error = np.std(values, ddof=1) / len(values) ** 0.5
            print(f"{name}: {way} at {alpha:g}: false alarms {np.mean(values):.4f} "
                  f"+- {error:.4f} over {splits} halves of {len(grids)}", flush=True)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["halves"]:
        halves(int(sys.argv[2]) if len(sys.argv) > 2 else 50, sys.argv[3:])
    elif sys.argv[1:2] == ["methods"]:
        methods(sys.argv[2:])
    else:
        table()
