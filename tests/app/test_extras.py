from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.data.samples import Sample
from src.data.transforms import ImageTransform
from src.detector import Detector
from src.extras import extras_sheet, write_extras
from src.models.base import AnomalyModule
from src.reporting.chart_files import draw_lines
from src.result import LineChart, Prediction, Threshold
from src.saved_run import SavedRun
from src.tracking import ExtrasWhileTraining

SIDE = 32


class Mirror(AnomalyModule):
    """Shows each image upside down, its brightness as a map and as a number, and an array."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Prediction:
        assert not self.training
        maps = image.mean(1).abs() * self.gain
        return Prediction(maps.amax((1, 2)), maps)

    def extras(self, image: Tensor) -> dict[str, Tensor]:
        return {
            "upside_down": image.flip(2),
            "brightness": image.mean(1),
            "mean": image.mean((1, 2, 3)),
            "code": image.repeat(1, 2, 1, 1),
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        assert self.training
        return self.gain * batch["image"].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Silent(Mirror):
    def extras(self, image: Tensor) -> dict[str, Tensor]:
        return {}


@pytest.fixture
def transform() -> ImageTransform:
    return ImageTransform(
        resize=SIDE, crop=None, interpolation="bilinear", antialias=True,
        mean=[0.5] * 3, std=[0.25] * 3,
    )  # fmt: skip


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    rng = np.random.default_rng(0)
    found = []
    for n, defect in enumerate(("good", "scratch", "good")):
        path = tmp_path / "data" / defect / f"{n:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
        found.append(Sample(path, None, int(defect != "good"), defect, "test"))
    return found


def detector(model: AnomalyModule, transform: ImageTransform) -> Detector:
    threshold, run = Threshold(1.0, 1.0, "quantile"), SavedRun(Path())
    cpu = torch.device("cpu")
    return Detector(model.eval(), transform, threshold, OmegaConf.create(), run, cpu)


def test_the_sheet_alone_is_written_when_nothing_else_is_asked(transform, samples, tmp_path):
    out = tmp_path / "extras"
    written = write_extras(detector(Mirror(), transform), samples, out, ())
    assert written == {"extras": out / "sheet.png"}
    assert list(out.iterdir()) == [out / "sheet.png"]


def test_of_every_image_the_kinds_asked_for_are_kept(transform, samples, tmp_path):
    out = tmp_path / "extras"
    kinds = ("numbers", "maps", "pictures", "arrays")
    write_extras(detector(Mirror(), transform), samples, out, kinds)
    assert len([path for path in out.rglob("*") if path.is_file()]) == 3 * 3 + 2
    image = np.asarray(Image.open(samples[1].image_path))
    shown = np.asarray(Image.open(out / "scratch" / "001_upside_down.png"))
    assert np.array_equal(shown, image[::-1])
    brightness = np.load(out / "scratch" / "001_brightness.npy")
    expected = (image.mean(2) / 255 - 0.5) / 0.25
    assert brightness.dtype == np.float32
    assert np.abs(brightness - expected).max() < 1e-5
    code = np.load(out / "scratch" / "001_code.npy")
    assert code.dtype == np.float16 and code.shape == (6, SIDE, SIDE)
    with (out / "numbers.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["path"]).stem for row in rows] == ["000", "001", "002"]
    assert float(rows[1]["mean"]) == pytest.approx(expected.mean(), abs=1e-5)


def test_a_method_with_nothing_to_show_writes_nothing(transform, samples, tmp_path):
    out = tmp_path / "extras"
    assert write_extras(detector(Silent(), transform), samples, out, ("maps",)) == {}
    assert not out.exists()


def test_the_sheet_shares_its_colours_between_rows(transform):
    images = torch.stack([torch.full((3, SIDE, SIDE), value) for value in (0.2, 0.8)])
    sheet = extras_sheet(Mirror().eval(), transform, images, ["a", "b"])
    assert sheet.width > 4 * SIDE  # input, upside down, brightness, anomaly map
    pixels = np.asarray(sheet).astype(int)
    cell_w, cell_h = sheet.width // 4, sheet.height // 2
    calm, hot = (pixels[row * cell_h + cell_h // 2, 2 * cell_w + cell_w // 2] for row in (0, 1))
    assert calm.sum() - hot.sum() > 100  # the hotter one is darker: no scale of its own


def test_tensorboard_gets_pictures_while_a_method_learns(transform, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="board")
    rows = [{"image": image} for image in torch.randn(8, 3, SIDE, SIDE)]
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[ExtrasWhileTraining(2, transform)],
    )  # fmt: skip
    trainer.fit(Mirror(), DataLoader(rows, 4))
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert events.Tags()["images"] == ["extras"]
    (picture,) = events.Images("extras")
    assert picture.step == 4
    assert picture.width > 500


def test_a_line_chart_draws_every_line_in_its_units():
    lines = {"one": ([1, 10], [3.0, 2.0]), "two": ([1, 10], [1.0, 0.5])}
    axes = draw_lines(LineChart("rows", "distance", lines, log_x=True)).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[3.0, 2.0], [1.0, 0.5]]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("rows", "distance", "log")
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]
    below = draw_lines(LineChart("minibatches", "training loss", {"loss": ([1, 2], [0.5, -2.0])}))
    assert below.axes[0].get_ylim()[0] < -2.0  # a likelihood may be above 1
