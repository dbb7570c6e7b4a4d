"""What `src.predict` draws for each image: overlay, mask and raw map at the original size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from src.detector import Detection, Detector
from src.errors import ConfigError, did_you_mean
from src.files import atomic, fitting, write_text
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import overlay
from src.reporting.records import Picture
from src.saved_run import SavedRun

MAP_FORMATS = ("none", "npy", "png")


class PictureWriter:
    """Writes overlays/, masks/ and maps/ below a folder, one file per image and kind."""

    def __init__(self, out: Path, detector: Detector, save: DictConfig) -> None:
        if save.maps not in MAP_FORMATS:
            raise ConfigError(
                "Unknown save.maps.", found=str(save.maps), do=did_you_mean(save.maps, MAP_FORMATS)
            )
        self.out, self.detector, self.save = out, detector, save
        self.scale = run_scale(SavedRun(detector.directory))

    def write(self, name: str, image: Image.Image, found: Detection) -> None:
        """Write what is wanted of one image; `name` is its path below the common root."""
        size = (image.height, image.width)
        if self.save.maps != "none":
            self._write_map(name, self.detector.to_original(found.anomaly_map, size))
        if not (self.save.masks or self.save.overlays):
            return
        mask = self.detector.to_original(found.mask, size) > 0.5
        if self.save.masks:
            self._write_image("masks", name, Image.fromarray(mask))
        if self.save.overlays:
            display = np.asarray(image)
            full = self.detector.to_original(found.anomaly_map, size)
            picture = Picture(display, full, segmentation=mask)
            self._write_image("overlays", name, Image.fromarray(overlay(picture, self.scale)))

    def _write_map(self, name: str, full: np.ndarray) -> None:
        if self.save.maps == "npy":
            target = self._target("maps", name, ".npy")
            with atomic(target) as partial, partial.open("wb") as stream:
                np.save(stream, full)
            return
        low, high = self._range()
        facts = {"value": f"{low} + grey / 65535 * {high - low}", "low": low, "high": high}
        if not (told := self.out / "maps" / "scale.json").is_file():
            write_text(told, json.dumps(facts, indent=2) + "\n")
        grey = np.clip((full - low) / (high - low), 0, 1) * 65535
        self._write_image("maps", name, Image.fromarray(np.rint(grey).astype(np.uint16)))

    def _range(self) -> tuple[float, float]:
        """Map values of black and white in 16-bit maps: fixed for the run, so images compare."""
        return self.scale.low, self.scale.high + (self.scale.high - self.scale.low)

    def _write_image(self, kind: str, name: str, picture: Image.Image) -> None:
        with atomic(self._target(kind, name, ".png")) as partial:
            picture.save(partial, format="PNG", compress_level=1)

    def _target(self, kind: str, name: str, suffix: str) -> Path:
        # The original suffix stays in the name: a.png and a.jpg of one folder must not collide.
        return fitting(self.out / kind / f"{name}{suffix}")


def run_scale(run: SavedRun) -> ColourScale:
    """The colour scale of a run's own figures, so that a colour keeps its meaning."""
    return ColourScale(**run.read_json("figures/scale.json"))
