"""A finished run at work: images in, scores, decisions and maps out; and what it was fitted on."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from src.data.datamodule import AnomalyDataModule
from src.data.images import open_rgb
from src.data.record import categories_of
from src.data.samples import Sample
from src.data.transforms import ImageTransform
from src.errors import ConfigError, DataError, SavedModelError, only
from src.models.base import AnomalyModule, read_model_card
from src.models.build import build_model
from src.models.replay import Replay
from src.result import Prediction, Threshold
from src.saved_run import SavedRun


class Detection(NamedTuple):
    """What the detector says of one image; maps lie on the model's grid (see `to_original`)."""

    score: float  # raw units, higher is more anomalous
    alarm: bool
    anomaly_map: np.ndarray  # (h, w) float32, raw units
    mask: np.ndarray  # (h, w) bool, pixels called defective
    extra: Mapping[str, np.ndarray]  # further maps (h, w) to show, by name; see Prediction


@dataclass(frozen=True)
class Detector:
    """A model with its transform and threshold, on one device."""

    model: AnomalyModule
    transform: ImageTransform
    threshold: Threshold
    config: DictConfig  # of the run, with the hardware that works here
    run: SavedRun
    device: torch.device

    @classmethod
    def load(cls, directory: Path, device: str = "auto", category: str | None = None) -> Self:
        """Load a finished run; `category`: whose threshold decides, None: the one for all."""
        run = SavedRun(directory.expanduser())
        if not run.finished:
            found = "no metrics.json" if directory.is_dir() else "no such folder"
            do = "run the experiment to its end, or give the folder it printed"
            raise SavedModelError(f"{directory} is not a finished run.", found=found, do=do)
        read_model_card(run.directory / "model")  # refuses what an earlier version fitted
        config = run.config()
        transform = ImageTransform(**config.transform)
        model = build_model(config, transform.size)
        model.load(run.directory / "model")
        threshold = Threshold.from_json(run.read_json("model/threshold.json"))
        if category is not None:
            only("category", [category], threshold.each or categories_of(config.data))
            threshold = threshold.of(category)
        model.own_mask = threshold.own_mask
        chosen = _device(device)
        config.hardware.update(
            accelerator="cpu" if chosen.type == "cpu" else "gpu",
            devices=1 if chosen.index is None else [chosen.index],
            strategy="auto",
            num_nodes=1,
        )
        model.eval().to(chosen)
        return cls(model, transform, threshold, config, run, chosen)

    def identity(self) -> str:
        """Sixteen hex digits of all that decides a score or an alarm, wherever the run lies."""
        config = cast(dict[str, Any], OmegaConf.to_container(self.config, resolve=True))
        card = read_model_card(self.run.directory / "model")
        parts = [card, self.threshold.to_json(), config["model"], config["transform"]]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(self, path: Path) -> Image.Image:
        """An image file as this detector's own images were read: RGB, deep grey by their scale."""
        return open_rgb(path, self.config.data.get("bit_depth"))

    def detect(self, images: Sequence[Image.Image | np.ndarray]) -> list[Detection]:
        """Score RGB images of any size as one batch; memory grows with the batch only."""
        return self.score([self.transform(image) for image in images])

    @torch.inference_mode()
    def score(self, inputs: Sequence[torch.Tensor]) -> list[Detection]:
        """The same of images (3, H, W) that went through the transform."""
        return self.decide(self._replay(torch.stack(list(inputs)).to(self.device)))

    @cached_property
    def _replay(self) -> Replay:
        return Replay(self.model)

    def decide(self, prediction: Prediction) -> list[Detection]:
        """Apply the threshold to a batch of predictions."""
        prediction = prediction.cpu()
        alarms, masks = self.threshold.decide(prediction), self.threshold.mask(prediction)
        found = []
        for row, mask in enumerate(masks.numpy()):
            extra = {name: maps[row].numpy() for name, maps in prediction.extra.items()}
            score, heat = float(prediction.score[row]), prediction.anomaly_map[row].numpy()
            found.append(Detection(score, bool(alarms[row]), heat, mask, extra))
        return found

    def to_original(self, grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A map (h, w) of this detector over an original image of (H, W) pixels, float32."""
        return self.transform.to_original(grid.astype(np.float32), size).numpy()


def _device(name: str) -> torch.device:
    """auto, cpu, mps, gpu or cuda, or one GPU such as cuda:1; ConfigError where it is missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name.replace("gpu", "cuda"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} GPUs that torch can use"
        do = "device=cpu, or install a CUDA build of torch and a driver"
        raise ConfigError(f"There is no such device as {name}.", found=found, do=do)
    return device


log = logging.getLogger(__name__)


def checked_data(run: SavedRun, other: DictConfig | None = None) -> AnomalyDataModule:
    """The data of a run, or of the config `other`, without test images that it was fitted on.

    What has changed since the fit is said; so are the images that are left out, by name. DataError:
    the images are not there, or all of them were fitted on. SavedModelError: the run names none.
    """
    record, data = run.record(), data_of(other or run.config())
    if other is None and (difference := record.difference(data.record)):
        log.warning("The data of %s changed since: %s.", run.directory, difference)
    data.leave_out({entry.content for entry in record.fitted})
    return data


def data_of(config: DictConfig) -> AnomalyDataModule:
    """The data of a run's config, looked at and ready."""
    data = AnomalyDataModule(config)
    data.prepare_data()
    data.setup()
    return data


def fitted_samples(run: SavedRun, data: AnomalyDataModule) -> list[Sample]:
    """The images of the fit, as the model numbers them; DataError: not all are in `data`."""
    return samples_with(data, {entry.path: entry.content for entry in run.record().fitted})


def samples_with(data: AnomalyDataModule, contents: Mapping[str, str]) -> list[Sample]:
    """The images with these contents, by the paths they had; DataError: some are not in `data`."""
    data.setup()
    here = {data.entry_of(sample).content: sample for sample in data.found}
    missing = [path for path, content in contents.items() if content not in here]
    if missing:
        found = f"{len(missing)} of {len(contents)}, first {missing[0]}, below {data.root}"
        do = "put them back, or give the folder that holds them as data.root"
        raise DataError("Images of the run are missing or were changed.", found=found, do=do)
    return [here[content] for content in contents.values()]
