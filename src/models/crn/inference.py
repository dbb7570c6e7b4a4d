"""The official inference mode: every image of a data set, with its difference image.

`python -m src.models.crn.inference runs/crn/mvtec/bottle/seed0-1a2b3c output_images`

Writes, for test images and then training images, as the official code does:
`anomaly_scores.csv`, `difference_images/<image>.png` (mean over channels of the difference / 2 as
grey value, at the size of the original) and `inference/<image>.png` (input, D(G(x)), difference).
Ours: units in evaluation mode, the score the model was built with, maps that are not transposed,
and files named by the path below the data root, so that no image overwrites another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.data.build import build_datamodule
from src.data.datamodule import AnomalyDataModule
from src.data.images import image_size, read_sample
from src.data.samples import Sample
from src.data.transforms import ImageTransform
from src.detector import Detector
from src.errors import ConfigError, GoodpartsError
from src.files import atomic, fitting, shown, write_rows
from src.models.crn.module import CRN

_PAD = 2  # white pixels between the pictures of a row, as the official code
_GREY_PER_UNIT = 255 / 2  # tanh pictures differ by 2 at most


class Row(NamedTuple):
    """One image of the data set and what became of it."""

    sample: Sample
    score: float
    anomaly_map: Tensor  # (h, w), raw units
    reconstruction: Tensor  # (3, h, w), D(G(x)) as the network gives it


def write_inference(model: CRN, data: AnomalyDataModule, folder: Path) -> Path:
    """Score every test and training image and write table and pictures; returns the table.

    Args:
        model: trained, on any device.
        data: set up.
        folder: created if needed.
    """
    table = folder / "anomaly_scores.csv"
    taken: set[str] = set()
    rows: list[dict[str, Any]] = []
    for row in infer(model, data):
        name = _unique_name(row.sample.image_path, data.root, taken)
        _save_pictures(row, data.transform, folder, name)
        rows.append(
            {
                "file_name": _below(row.sample.image_path, data.root),
                "anomaly_score": row.score,
                "split": row.sample.split,
                "label": row.sample.label,
            }
        )
    write_rows(table, rows)
    return table


@torch.inference_mode()
def infer(model: CRN, data: AnomalyDataModule) -> Iterator[Row]:
    """Rows of the test images, then of all training images, held-out ones last."""
    loaders: Iterable[Iterable[dict[str, Tensor]]] = (
        data.test_dataloader(),
        data.ordered_train_dataloader(),
        data.calibration_dataloader(),
    )
    for loader in loaders:
        for batch in loader:
            image = batch["image"].to(model.device)
            prediction, (_, judged) = model(image), model.reconstruct(image)
            for i, index in enumerate(batch["index"].tolist()):
                yield Row(
                    data.samples[index],
                    float(prediction.score[i]),
                    prediction.anomaly_map[i].cpu(),
                    judged[i].float().cpu(),
                )


def difference_image(
    anomaly_map: Tensor, transform: ImageTransform, size: tuple[int, int]
) -> Image.Image:
    """Grey picture of a map (h, w) at the original (H, W): 255 is a difference of 2 or more."""
    values = transform.to_original(anomaly_map, size, fill=0.0).numpy()
    return Image.fromarray((values * _GREY_PER_UNIT).round().clip(0, 255).astype(np.uint8))


def _save_pictures(row: Row, transform: ImageTransform, folder: Path, name: str) -> None:
    size = image_size(row.sample.image_path)
    difference = difference_image(row.anomaly_map, transform, size)
    _save(difference, folder / "difference_images" / name)
    _save(_side_by_side(row, transform), folder / "inference" / name)


def _side_by_side(row: Row, transform: ImageTransform) -> Image.Image:
    """Input, reconstruction and difference on the grid of the network."""
    height, width = row.anomaly_map.shape
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (transform.mean, transform.std))
    picture = (row.reconstruction * std + mean).clamp(0, 1).mul(255).round().byte()
    grey = row.anomaly_map.mul(_GREY_PER_UNIT).round().clamp(0, 255).byte()
    parts = [
        transform.display(read_sample(row.sample)),
        picture.permute(1, 2, 0).numpy(),
        grey[:, :, None].expand(-1, -1, 3).numpy(),
    ]
    canvas = np.full((height + 2 * _PAD, 3 * width + 4 * _PAD, 3), 255, np.uint8)
    for i, part in enumerate(parts):
        left = _PAD + i * (width + _PAD)
        canvas[_PAD : _PAD + height, left : left + width] = part
    return Image.fromarray(canvas)


def _save(picture: Image.Image, path: Path) -> None:
    with atomic(fitting(path)) as partial:
        picture.save(partial, format="PNG")


def _unique_name(path: Path, root: Path, taken: set[str]) -> str:
    """`test/crack/000.png` for that image; other suffixes keep theirs: `a.jpg.png`."""
    name = _below(path, root)
    if not name.lower().endswith(".png"):
        name += ".png"
    while name.lower() in taken:  # some file systems ignore case
        name = f"{name[:-4]}_.png"
    taken.add(name.lower())
    return name


def _below(path: Path, root: Path) -> str:
    inside = path.relative_to(root) if path.is_relative_to(root) else path.relative_to(path.anchor)
    return shown(inside)


def main(arguments: list[str] | None = None) -> int:
    """Command line; exit code 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(prog="python -m src.models.crn.inference")
    parser.add_argument("run", type=Path, help="folder of a finished CRN run")
    parser.add_argument("out", type=Path, nargs="?", default=Path("output_images"))
    options = parser.parse_args(arguments)
    try:
        detector = Detector.load(options.run)
        if not isinstance(detector.model, CRN):
            raise ConfigError(
                "This writes the difference images of CRN.",
                found=f"a run of {type(detector.model).__name__}",
                do="use python -m src.predict for other methods",
            )
        data = build_datamodule(detector.config)
        data.prepare_data()
        data.setup()
        print(write_inference(detector.model, data, options.out))
    except GoodpartsError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
