"""anomalib's PatchCore on one MVTec AD category, in anomalib's own environment.

Started by bench_patchcore_peers.py. Generous to the peer: no validation pass, no thresholds, no
pictures, only the two AUROCs. Prints one line of JSON. Scores are scaled to 0..1 before the AUROC:
its metric applies a sigmoid to anything outside, which makes raw distances all equal.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import warnings

import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.models.components import KCenterGreedy
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback
from torchmetrics.functional.classification import binary_auroc
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

warnings.filterwarnings("ignore")
selection: dict[str, float] = {}


def timed_selection(sampler: KCenterGreedy) -> list[int]:
    """Measure the coreset, to be able to say what ten times as many picks would take."""
    cpu, wall = time.process_time(), time.perf_counter()
    rows = original(sampler)
    selection["picks"] = len(rows)
    selection["cpu_s"] = time.process_time() - cpu
    selection["wall_s"] = time.perf_counter() - wall
    return rows


original = KCenterGreedy.select_coreset_idxs
KCenterGreedy.select_coreset_idxs = timed_selection


class Collect(Callback):
    """Scores, labels, maps and masks of the test images."""

    def __init__(self) -> None:
        self.parts: dict[str, list[torch.Tensor]] = {}

    def on_test_batch_end(self, trainer, module, outputs, batch, *position) -> None:
        for key in ("pred_score", "gt_label", "anomaly_map", "gt_mask"):
            self.parts.setdefault(key, []).append(getattr(outputs, key).flatten())

    def auroc(self, score: str, truth: str) -> float:
        values = torch.cat(self.parts.pop(score))
        scaled = (values - values.min()) / (values.max() - values.min())
        return float(binary_auroc(scaled, torch.cat(self.parts.pop(truth)).int()))


def test_pass(
    engine: Engine, model: Patchcore, data: MVTecAD, collect: Collect
) -> dict[str, float]:
    """Metrics and cost of the test images."""
    cpu, wall = time.process_time(), time.perf_counter()
    engine.test(model=model, datamodule=data, verbose=False)
    facts = {
        "image_AUROC": collect.auroc("pred_score", "gt_label"),
        "pixel_AUROC": collect.auroc("anomaly_map", "gt_mask"),
    }
    facts["cpu_s"] = time.process_time() - cpu
    facts["wall_s"] = time.perf_counter() - wall
    return facts


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("root", "category", "weights", "backbone"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--layers", nargs="+", required=True)
    parser.add_argument("--mean", nargs=3, type=float, required=True)
    parser.add_argument("--std", nargs=3, type=float, required=True)
    parser.add_argument("--ratio", type=float, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--accelerator", default="cpu")
    args = parser.parse_args()

    data = MVTecAD(
        args.root, args.category, train_batch_size=args.batch_size,
        eval_batch_size=args.batch_size, num_workers=0,
    )  # fmt: skip
    transform = Compose(
        [Resize(256, antialias=True), CenterCrop(224), Normalize(args.mean, args.std)]
    )
    model = Patchcore(
        backbone=args.backbone, layers=args.layers, pre_trained=False,
        coreset_sampling_ratio=args.ratio, pre_processor=PreProcessor(transform=transform),
        post_processor=False, visualizer=False, evaluator=False,
    )  # fmt: skip
    network = model.model.feature_extractor.feature_extractor
    weights = torch.load(args.weights, weights_only=True)
    left = network.load_state_dict(weights, strict=False)
    missing = [key for key in left.missing_keys if "num_batches" not in key]

    collect = Collect()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            default_root_dir=folder, accelerator=args.accelerator, logger=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
            callbacks=[collect],
        )  # fmt: skip
        cpu, wall = time.process_time(), time.perf_counter()
        engine.fit(model=model, datamodule=data)
        fit = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        test = test_pass(engine, model, data, collect)
        # The cost of searching a bank ten times as large, without selecting it.
        bank = model.model.memory_bank
        model.model.memory_bank = bank.repeat(10, 1)
        large = test_pass(engine, model, data, collect)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    facts = {
        "fit": fit, "selection": selection, "test": test, "test_large": large,
        "cpu_s": usage.ru_utime + usage.ru_stime - large["cpu_s"],
        "large_wall_s": large["wall_s"], "peak_mb": usage.ru_maxrss / 1024,
        "bank": len(bank), "dim": bank.shape[1], "missing": missing[:3],
    }  # fmt: skip
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
