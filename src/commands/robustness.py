"""AUROC, recall and false alarms of a finished run under changes of image and training data."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from omegaconf import DictConfig
from PIL import Image, ImageEnhance, ImageFilter
from rich.console import Console

from src import experiment
from src.beginning import Beginning
from src.data.datamodule import AnomalyDataModule
from src.data.images import read_sample
from src.data.record import list_samples
from src.data.samples import DEFECTIVE, NORMAL, Found, Sample
from src.data.splits import limit_test
from src.detector import Detector, checked_data
from src.errors import ConfigError, only
from src.evaluation.ranking import auroc
from src.models.build import build_model
from src.reporting.chart_files import new_panels, save_figure
from src.saved_run import SavedRun
from src.training import Work, build_trainer

Row = dict[str, str | float]
Change = Callable[[Image.Image], Image.Image]

_LINES = {"image_auroc": "#2a5f96", "recall": "#5b8f3a", "false_alarm_rate": "#c2541b"}


def rotate(degrees: float, image: Image.Image) -> Image.Image:
    """Turn about the centre; corners take the mean colour of the border."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (round(float(value)) for value in border.mean(axis=0))
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(red, green, blue))


def compress(quality: float, image: Image.Image) -> Image.Image:
    """Through JPEG at `quality` (1..95) and back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


#: What happens to images in a factory: light, focus, pose, compression; (level, image) -> image.
CHANGES: dict[str, Callable[[float, Image.Image], Image.Image]] = {
    "brightness": lambda factor, image: ImageEnhance.Brightness(image).enhance(factor),
    "blur": lambda sigma, image: image.filter(ImageFilter.GaussianBlur(sigma)),
    "rotation": rotate,
    "jpeg": compress,
}


def measure_robustness(cfg: DictConfig) -> list[Row]:
    """One row per change and level; also written as CSV and drawn."""
    only("changes", cfg.changes, CHANGES)
    detector = Detector.load(Path(cfg.run), cfg.device)
    data = checked_data(detector.run)
    samples = limit_test(data.test_samples, cfg.limit, cfg.seed)
    labels = {sample.label for sample in samples}
    if NORMAL not in labels:
        what = "Robustness needs normal test images."
        raise ConfigError(what, found=f"{len(samples)} images", do="add some")
    rows = [_row("none", math.nan, detector, samples, cfg.batch_size)]
    for name, levels in cfg.changes.items():
        for level in map(float, levels or []):
            change = partial(CHANGES[str(name)], level)
            rows.append(_row(str(name), level, detector, samples, cfg.batch_size, change))
    out = SavedRun(Path(cfg.out or detector.run.directory / "robustness"))
    if cfg.contamination and DEFECTIVE in labels:
        rows.append(_contaminated(cfg, detector, samples, out.directory / "contaminated"))
    out.write_rows("robustness.csv", rows)
    table = pd.DataFrame(rows)
    _draw(table, out.directory / "robustness.png")
    Console().print(table.round(3).to_string(index=False, na_rep=""), highlight=False)
    print(f"Wrote {out.directory}")
    return rows


def _row(
    name: str, level: float, detector: Detector, samples: Sequence[Sample], batch_size: int,
    change: Change = lambda image: image,
) -> Row:  # fmt: skip
    """Metrics with every test image changed the same way; the threshold stays."""
    found = []
    for at in range(0, len(samples), batch_size):
        found += detector.detect([change(read_sample(s)) for s in samples[at : at + batch_size]])
    scores, alarm = (np.array([getattr(f, name) for f in found]) for name in ("score", "alarm"))
    defect = np.array([sample.label == DEFECTIVE for sample in samples])
    normal = np.array([sample.label == NORMAL for sample in samples])
    known = defect | normal
    return {
        "change": name,
        "level": level,
        "image_auroc": auroc(scores[known], defect[known]),
        "recall": float(alarm[defect].mean()) if defect.any() else math.nan,
        "false_alarm_rate": float(alarm[normal].mean()),
        "images": len(samples),
    }


def _contaminated(cfg: DictConfig, detector: Detector, samples: list[Sample], folder: Path) -> Row:
    """Fit anew with a share of defective images among the good ones; they leave the test set."""
    config = detector.config
    clean = list_samples(config.data)
    trained = sum(s.split == "train" for s in clean)
    count = max(1, round(cfg.contamination * trained))
    defective = [sample for sample in samples if sample.label == DEFECTIVE]
    order = np.random.default_rng(cfg.seed).permutation(len(defective))[:count]
    slipped = {defective[i].image_path for i in order}

    good = partial(replace, label=NORMAL, defect="good", split="train", mask_path=None)
    listed = Found(good(s) if s.image_path in slipped else s for s in clean)
    dirty = AnomalyDataModule(config, listed)
    dirty.setup()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model = build_model(config, dirty.image_size)
    run = SavedRun(folder)
    run.start(config, {}, force=True)
    trainer = build_trainer(config, folder, [], single_pass=model.single_pass)
    work = Work(config, run, trainer, model, dirty)
    experiment.fit(work, Beginning(run, False, None))
    threshold = experiment.calibrate(work) or detector.threshold
    judge = replace(detector, model=model.eval().to(detector.device), threshold=threshold)
    rest = [sample for sample in samples if sample.image_path not in slipped]
    return _row("contamination", cfg.contamination, judge, rest, cfg.batch_size)


def _draw(table: pd.DataFrame, path: Path) -> None:
    """Small panels, one a change: AUROC, recall and false alarm rate against the level."""
    plain, changed = table.iloc[0], table[table["change"] != "none"]
    count = max(1, changed["change"].nunique())
    figure, panels = new_panels(3.0 * count, 2.8, count)
    for axes, (name, group) in zip(panels, changed.groupby("change", sort=False), strict=False):
        mine = group.sort_values("level")
        for key, colour in _LINES.items():
            axes.plot(mine["level"], mine[key], "o-", color=colour, label=key, ms=4)
            axes.axhline(plain[key], color=colour, lw=0.8, ls=":")
        axes.set(title=name, ylim=(-0.03, 1.03))
    if len(changed):
        panels[0].legend(frameon=False, fontsize=8)
    save_figure(figure, path, dpi=130)
