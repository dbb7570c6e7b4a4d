"""Explain one image with a saved memory bank: what `python -m src.patch_match` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from src.data.build import build_datamodule, with_data_at
from src.data.datamodule import AnomalyDataModule
from src.data.images import read_sample
from src.data.samples import Sample
from src.detector import Detector
from src.errors import ConfigError, DataError, did_you_mean
from src.files import fitting, shown
from src.fitted import fitted_samples
from src.reporting import patch_match as draw
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import save_png
from src.reporting.patch_match import MatchGrid
from src.reporting.records import Picture
from src.saved_run import SavedRun


def explain_image(cfg: DictConfig) -> list[Path]:
    """Write the match figure, the distance maps and the animation of `cfg.image`.

    Returns: the files, in `cfg.out` or `<run>/patch_match/<image>`.

    Raises:
        ConfigError: the method keeps no patches.
        DataError: the image, or the normal images the run was fitted on, are not there.
    """
    detector = Detector.load(Path(cfg.run), cfg.device)
    if not hasattr(detector.model, "nearest_patches"):
        raise ConfigError(
            f"{detector.config.model.name} keeps no patches that could be shown.",
            found=f"run={cfg.run}",
            do="give the folder of a PatchCore run",
        )
    data = build_datamodule(with_data_at(detector.config, cfg.data.root))
    data.setup()
    sample = find_sample(Path(str(cfg.image)), data)
    image = read_sample(sample)
    grid = match_grid(detector, image)
    sources = fitted_samples(SavedRun(detector.directory), data)
    picture = _picture(detector, image, sample, grid, sources)
    folder = _folder(cfg, sample)
    scale = ColourScale(**SavedRun(detector.directory).read_json("figures/scale.json"))
    facts = (shown(sample.image_path.name), *_facts(detector))
    save_png(draw.match_figure(picture, scale, facts), folder / "match.png")
    save_png(_pair(detector, image, picture, grid), folder / "distances.png")
    written = [folder / "match.png", folder / "distances.png"]
    if cfg.animation.format is not None:
        written.append(folder / f"patches.{cfg.animation.format}")
        draw.write_animation(
            written[-1], grid, _patch_scale(detector, grid), _source(detector, sources),
            side=cfg.animation.side, milliseconds=cfg.animation.milliseconds,
            step=cfg.animation.step,
        )  # fmt: skip
    for path in written:
        print(path)
    return written


def find_sample(path: Path, data: AnomalyDataModule) -> Sample:
    """The sample of a path: an image of the data set by the end of its path, or any image file.

    Raises:
        DataError: there is none, or several images of the data set end like this.
    """
    known = {sample.image_path: sample for sample in data.samples}
    full = path.expanduser().absolute()
    if full in known:
        return known[full]
    if full.is_file():
        return Sample(full, None, -1, "unknown", "test")
    parts = path.parts
    ends = [each for each in known if each.parts[-len(parts) :] == parts]
    if len(ends) == 1:
        return known[ends[0]]
    if ends:
        raise DataError(
            f"Several images are called {path}.",
            found=", ".join(str(each) for each in ends[:4]),
            do="give more of the path",
        )
    names = [str(each.relative_to(data.root)) for each in known if each.is_relative_to(data.root)]
    raise DataError(
        f"There is no image {path}.",
        found=f"neither in this folder nor among the images of {data.root}",
        do=did_you_mean(str(path), names) if names else "give the path of an image",
    )


@torch.inference_mode()
def match_grid(detector: Detector, image: Image.Image | np.ndarray) -> MatchGrid:
    """Nearest bank rows of all patches of one image."""
    match = detector.model.nearest_patches(  # type: ignore[operator]
        detector.transform(image).to(detector.device)
    )
    return MatchGrid(
        display=detector.transform.display(image),
        distance=match.distance.float().cpu().numpy(),
        image=match.image.cpu().numpy(),
        place=match.place.cpu().numpy(),
        metric=str(detector.config.model.get("distance", "euclidean")),
    )


def _picture(
    detector: Detector,
    image: Image.Image | np.ndarray,
    sample: Sample,
    grid: MatchGrid,
    sources: Sequence[Sample],
) -> Picture:
    found = detector.detect([image])[0]
    row, column = divmod(int(grid.distance.argmax()), grid.distance.shape[1])
    return Picture(
        display=grid.display,
        anomaly_map=found.anomaly_map,
        mask=None if sample.mask_path is None else detector.transform.mask(sample.mask_path),
        segmentation=found.mask,
        match=draw.match_at(grid, row, column, _source(detector, sources)),
    )


def _source(detector: Detector, sources: Sequence[Sample]) -> draw.Source:
    """Reads the normal images that the bank rows stem from."""

    def read(index: int) -> tuple[str, np.ndarray]:
        sample = sources[index]
        return shown(sample.image_path.name), detector.transform.display(read_sample(sample))

    return read


@torch.inference_mode()
def _pair(
    detector: Detector, image: Image.Image | np.ndarray, picture: Picture, grid: MatchGrid
) -> Image.Image:
    """Both distances of the same patches to the same bank."""
    model: Any = detector.model
    batch = detector.transform(image).to(detector.device)[None]
    patches = model.memory.patches(model.backbone(batch))[0]  # (h, w, D)
    bank = model.memory.bank.vectors(torch.arange(len(model.memory.bank), device=batch.device))
    euclidean, cosine = draw.distance_maps(patches.float().cpu().numpy(), bank.cpu().numpy())
    scale = ColourScale.fit([euclidean], _hot(euclidean, picture))
    unit = " of unit vectors" if grid.metric == "cosine" else ""
    maps = [
        (f"Euclidean distance{unit}", euclidean, scale),
        ("cosine distance", cosine, draw.equal_share(euclidean, cosine, scale)),
    ]
    return draw.heat_pair(picture, maps)


def _hot(distance: np.ndarray, picture: Picture) -> float:
    """The distance that as many patches exceed as the segmentation has pixels, at least one."""
    marked = 0.0 if picture.segmentation is None else float(picture.segmentation.mean())
    return float(np.quantile(distance, 1.0 - max(marked, 1.5 / distance.size)))


def _patch_scale(detector: Detector, grid: MatchGrid) -> ColourScale:
    """Scale of unsmoothed patch distances, anchored at the image threshold (a patch distance)."""
    return ColourScale.fit([grid.distance], detector.threshold.image)


def _facts(detector: Detector) -> list[str]:
    config = detector.config
    layers = [str(layer) for layer in config.backbone.get("layers") or []]
    return [
        f"{config.model.name}, {config.backbone.get('name') or 'no backbone'}",
        *([f"layers {', '.join(layers)}"] if layers else []),
        f"{config.data.name} {config.data.get('category') or ''}".strip(),
    ]


def _folder(cfg: DictConfig, sample: Sample) -> Path:
    if cfg.out:
        return Path(cfg.out).expanduser()
    name = f"{sample.image_path.parent.name}_{sample.image_path.stem}"
    return fitting(Path(cfg.run).expanduser() / "patch_match" / name)
