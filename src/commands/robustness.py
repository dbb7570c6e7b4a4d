"""AUROC, recall and false alarms of a finished run under changes of image and training data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.table import Table

from src import experiment
from src.beginning import Beginning
from src.data.build import build_datamodule
from src.data.datamodule import AnomalyDataModule, Index
from src.data.images import read_sample
from src.data.samples import DEFECTIVE, NORMAL, Found, Sample
from src.data.splits import limit_test
from src.deployment.changes import find_change
from src.detector import Detector
from src.errors import ConfigError
from src.evaluation.ranking import auroc
from src.fitted import checked_data
from src.models.build import build_model
from src.saved_run import SavedRun
from src.training import build_trainer

Row = dict[str, Any]


def measure_robustness(cfg: DictConfig) -> list[Row]:
    """One row per change and level; also written as CSV and drawn."""
    detector = Detector.load(Path(cfg.run), cfg.device)
    data = checked_data(SavedRun(detector.directory))
    samples = limit_test(data.test_samples, cfg.limit, cfg.seed)
    labels = {sample.label for sample in samples}
    if NORMAL not in labels:
        raise ConfigError(
            "Robustness needs normal test images.", found=f"{len(samples)} images", do="add some"
        )
    rows = [_row("none", math.nan, detector, samples, lambda image: image, cfg.batch_size)]
    for name, levels in cfg.changes.items():
        change = find_change(str(name))
        for level in levels or []:
            changed = _bind(change, float(level))
            rows.append(_row(str(name), float(level), detector, samples, changed, cfg.batch_size))
    out = SavedRun(Path(cfg.out) if cfg.out else detector.directory / "robustness")
    if cfg.contamination and DEFECTIVE in labels:
        rows.append(_contaminated(cfg, detector, samples, out.directory / "contaminated"))
    out.write_rows("robustness.csv", rows)
    _draw(rows, out.directory / "robustness.png")
    Console().print(_table(rows), f"Wrote {out.directory}")
    return rows


def _bind(
    change: Callable[[Image.Image, float], Image.Image], level: float
) -> Callable[[Image.Image], Image.Image]:
    return lambda image: change(image, level)


def _row(
    name: str,
    level: float,
    detector: Detector,
    samples: Sequence[Sample],
    change: Callable[[Image.Image], Image.Image],
    batch_size: int,
) -> Row:
    """Metrics with every test image changed the same way; the threshold stays."""
    scores: list[float] = []
    alarms: list[bool] = []
    for at in range(0, len(samples), batch_size):
        images = [change(read_sample(sample)) for sample in samples[at : at + batch_size]]
        for found in detector.detect(images):
            scores.append(found.score)
            alarms.append(found.alarm)
    defect = np.array([sample.label == DEFECTIVE for sample in samples])
    normal = np.array([sample.label == NORMAL for sample in samples])
    alarm = np.array(alarms)
    known = defect | normal
    return {
        "change": name,
        "level": level,
        "image_auroc": auroc(np.array(scores)[known], defect[known]),
        "recall": float(alarm[defect].mean()) if defect.any() else math.nan,
        "false_alarm_rate": float(alarm[normal].mean()),
        "images": len(samples),
    }


def _contaminated(cfg: DictConfig, detector: Detector, samples: list[Sample], folder: Path) -> Row:
    """Fit anew with a share of defective images among the good ones; they leave the test set."""
    config = detector.config
    dirty = build_datamodule(config)
    clean_index = dirty.index
    count = max(1, round(cfg.contamination * _training_images(clean_index, dirty)))
    defective = [sample for sample in samples if sample.label == DEFECTIVE]
    order = np.random.default_rng(cfg.seed).permutation(len(defective))[:count]
    slipped = {defective[i].image_path for i in order}

    def index(root: Path, category: str) -> Found:
        """The data set with some defective test images filed as good training images."""
        found = clean_index(root, category)
        return Found(_filed_as_good(one) if one.image_path in slipped else one for one in found)

    dirty.index = index
    dirty.setup()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model = build_model(config, dirty.image_size)
    run = SavedRun(folder)
    run.start(config, {}, force=True)
    trainer = build_trainer(config, folder, [], single_pass=model.single_pass)
    experiment.fit(Beginning(run, False, None), trainer, model, dirty)
    threshold = experiment.calibrate(config, run, trainer, model, dirty) or detector.threshold
    judge = Detector(
        model.eval().to(detector.device), detector.transform, threshold, config,
        detector.directory, detector.device,
    )  # fmt: skip
    rest = [sample for sample in samples if sample.image_path not in slipped]
    return _row("contamination", cfg.contamination, judge, rest, lambda i: i, cfg.batch_size)


def _training_images(index: Index, data: AnomalyDataModule) -> int:
    return sum(sample.split == "train" for sample in index(data.root, data.category))


def _filed_as_good(sample: Sample) -> Sample:
    return dataclasses.replace(sample, label=NORMAL, defect="good", split="train", mask_path=None)


def _table(rows: list[Row]) -> Table:
    table = Table("change", "level", "image AUROC", "recall", "false alarms")
    for row in rows:
        level = "" if math.isnan(row["level"]) else f"{row['level']:g}"
        numbers = (f"{row[key]:.3f}" for key in ("image_auroc", "recall", "false_alarm_rate"))
        table.add_row(row["change"], level, *numbers)
    return table


def _draw(rows: list[Row], path: Path) -> None:
    """Small panels, one a change: AUROC and false alarm rate against the level."""
    names = list(dict.fromkeys(row["change"] for row in rows if row["change"] != "none"))
    figure = Figure((3.0 * max(1, len(names)), 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    plain = rows[0]
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        mine = sorted((row for row in rows if row["change"] == name), key=lambda row: row["level"])
        levels = [row["level"] for row in mine]
        for key, colour, text in (
            ("image_auroc", "#2a5f96", "image AUROC"),
            ("recall", "#5b8f3a", "recall"),
            ("false_alarm_rate", "#c2541b", "false alarms"),
        ):
            axes.plot(levels, [row[key] for row in mine], "o-", color=colour, label=text, ms=4)
            axes.axhline(plain[key], color=colour, lw=0.8, ls=":")
        axes.set(title=name, ylim=(-0.03, 1.03))
        axes.spines[["top", "right"]].set_visible(False)
        if place == 0:
            axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
