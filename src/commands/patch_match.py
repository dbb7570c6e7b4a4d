"""Explain one image with a saved memory bank: what `python -m src.patch_match` does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from src.data.datamodule import AnomalyDataModule
from src.data.images import read_sample
from src.data.record import with_data_at
from src.data.samples import UNKNOWN, Sample
from src.detector import Detector, fitted_samples
from src.errors import ConfigError, DataError, did_you_mean
from src.explaining import match_grid, picture_of, reader
from src.files import fitting, shown
from src.models.patchcore.scores import euclidean_and_cosine
from src.reporting import match_pictures as pictures
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import save_png
from src.reporting.match_pictures import MatchGrid, match_at
from src.reporting.records import Picture


def explain_image(cfg: DictConfig) -> list[Path]:
    """Write match figure, distance maps and animation of `cfg.image`; returns their paths."""
    detector = Detector.load(Path(cfg.run), cfg.device)
    config = detector.config
    if not hasattr(detector.model, "nearest_patches"):
        what = f"{config.model.name} keeps no patches that could be shown."
        raise ConfigError(what, found=f"run={cfg.run}", do="give the folder of a PatchCore run")
    data = AnomalyDataModule(with_data_at(config, cfg.data.root))
    data.setup()
    sample = find_sample(Path(str(cfg.image)), data)
    image = read_sample(sample)
    grid = match_grid(detector, image)
    source = reader(detector, fitted_samples(detector.run, data))
    picture = replace(picture_of(detector, sample), match=match_at(grid, grid.worst, source))
    layers = ", ".join(map(str, config.backbone.get("layers") or []))
    facts = [
        shown(sample.image_path.name),
        f"{config.model.name}, {config.backbone.get('name') or 'no backbone'}",
        *([f"layers {layers}"] if layers else []),
        f"{config.data.name} {config.data.get('category') or ''}".strip(),
    ]
    name = f"{sample.image_path.parent.name}_{sample.image_path.stem}"
    folder = Path(cfg.out or fitting(detector.run.directory / "patch_match" / name))
    written = [folder / "match.png", folder / "distances.png"]
    save_png(pictures.match_figure(picture, ColourScale.of_run(detector.run), facts), written[0])
    save_png(_distances(detector, image, picture, grid), written[1])
    if (film := cfg.animation).format is not None:
        written.append(folder / f"patches.{film.format}")
        # Unsmoothed patch distances, as the image score is one: its threshold is their anchor.
        scale = ColourScale.fit([grid.distance], detector.threshold.image)
        pictures.write_animation(
            written[-1], grid, scale, source,
            side=film.side, milliseconds=film.milliseconds, step=film.step,
        )  # fmt: skip
    print(*written, sep="\n")
    return written


def find_sample(path: Path, data: AnomalyDataModule) -> Sample:
    """An image of the data set by its path's end, else any file; DataError: none or several."""
    known = {sample.image_path: sample for sample in data.samples}
    full, parts = path.absolute(), path.parts
    if full not in known and full.is_file():
        return Sample(full, None, UNKNOWN, "unknown", "test")
    ends = [each for each in known if each.parts[-len(parts) :] == parts]
    if full in known or len(ends) == 1:
        return known[full if full in known else ends[0]]
    if ends:
        found = ", ".join(map(str, ends[:4]))
        raise DataError(
            f"Several images are called {path}.", found=found, do="give more of the path"
        )
    names = [str(each.relative_to(data.root)) for each in known if each.is_relative_to(data.root)]
    found = f"neither in this folder nor among the images of {data.root}"
    do = did_you_mean(str(path), names) if names else "give the path of an image"
    raise DataError(f"There is no image {path}.", found=found, do=do)


@torch.inference_mode()
def _distances(
    detector: Detector, image: Image.Image | np.ndarray, picture: Picture, grid: MatchGrid
) -> Image.Image:
    """Both distances to one bank; as many patches are hot as the segmentation has pixels."""
    model: Any = detector.model
    batch = detector.transform(image).to(detector.device)[None]
    patches = model.patches(batch)[0][0]  # (h, w, D)
    both = euclidean_and_cosine(patches, model.memory.bank.vectors())
    spread = model.memory.region.spread
    euclidean, cosine = (spread(distance[None])[0].cpu().numpy() for distance in both)
    marked = 0.0 if picture.segmentation is None else float(picture.segmentation.mean())
    hot = np.quantile(euclidean, 1.0 - max(marked, 1.5 / euclidean.size))
    scale = ColourScale.fit([euclidean], float(hot))
    unit = " of unit vectors" if grid.metric == "cosine" else ""
    maps = [
        (f"Euclidean distance{unit}", euclidean, scale),
        ("cosine distance", cosine, pictures.equal_share(euclidean, cosine, scale)),
    ]
    return pictures.heat_pair(picture, maps)
