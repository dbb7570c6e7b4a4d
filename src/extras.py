"""What a method can show of images beyond its prediction: a sheet of some, files of all."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.data.images import read_sample
from src.data.samples import Sample
from src.data.transforms import ImageTransform
from src.detector import Detector
from src.files import atomic, fitting, shown, write_rows
from src.models.base import AnomalyModule
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import contact_sheet, heat, save_png

_SHEET_ROWS = 8
_PERCENTILE = 99.5  # of all rows together: the hottest colour
_FADED = 200  # grey below a map that has no picture of its own


def kind_of(value: Tensor) -> str:
    """`numbers` (B,), `maps` (B, h, w), `pictures` (B, 3, H, W), else `arrays` (B, C, h, w)."""
    if value.ndim == 4:
        return "pictures" if value.shape[1] == 3 else "arrays"
    return "numbers" if value.ndim == 1 else "maps"


@torch.inference_mode()
def write_extras(
    detector: Detector, samples: Sequence[Sample], folder: Path, keep: Collection[str]
) -> dict[str, Path]:
    """Draw `sheet.png` of one image per kind of defect, and keep of every image the kinds `keep`.

    Files: `numbers.csv`, `<defect>/<image>_<name>.npy` of maps (float32) and arrays (float16),
    `.png` of pictures. Returns the sheet as `extras`; nothing where the method has none.
    """

    def read(sample: Sample) -> Tensor:
        return detector.transform(read_sample(sample)).to(detector.device)

    chosen = {sample.defect: sample for sample in reversed(samples)}  # the first of each
    kinds = list(dict.fromkeys(sample.defect for sample in samples))[:_SHEET_ROWS]
    if not kinds:
        return {}
    images = torch.stack([read(chosen[kind]) for kind in kinds])
    if (sheet := extras_sheet(detector.model, detector.transform, images, kinds)) is None:
        return {}
    save_png(sheet, folder / "sheet.png")
    numbers = []
    for sample in samples if keep else ():
        extras = detector.model.extras(read(sample)[None])
        _keep(extras, detector.transform, folder / sample.defect / sample.image_path.stem, keep)
        row = {name: float(x[0]) for name, x in extras.items() if kind_of(x) == "numbers"}
        numbers.append({"path": shown(sample.image_path), "defect": sample.defect, **row})
    if "numbers" in keep:
        write_rows(folder / "numbers.csv", numbers)
    return {"extras": folder / "sheet.png"}


@torch.inference_mode()
def extras_sheet(
    model: AnomalyModule, transform: ImageTransform, images: Tensor, captions: Sequence[str]
) -> Image.Image | None:
    """One row an image: input, its extra pictures and maps, the anomaly map over the input.

    A colour means the same value in every row of a column. `images` (n, 3, H, W) lie normalised on
    the device of `model`, which is in evaluation mode. None: the method has nothing to show.
    """
    extras = model.extras(images)
    if not extras:
        return None
    display = _rgb(images, transform)
    columns = {"input": display}
    for name, value in extras.items():
        if kind_of(value) == "pictures":
            columns[name] = _rgb(value, transform)
        elif kind_of(value) == "maps":
            columns[name] = _heated(value, np.full_like(display, _FADED))
    grey = display.mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)
    columns["anomaly_map"] = _heated(model(images).anomaly_map, grey)
    names = [name.replace("_", " ") for name in columns]
    tiles = [panel[row] for row in range(len(captions)) for panel in columns.values()]
    labels = [f"{caption}: {name}" for caption in captions for name in names]
    return contact_sheet(tiles, labels, columns=len(columns))


def _rgb(images: Tensor, transform: ImageTransform) -> np.ndarray:
    """Normalised images (n, 3, H, W) -> (n, H, W, 3) uint8."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (transform.mean, transform.std))
    pixels = (images.float().cpu() * std + mean).clamp(0, 1).mul(255).round()
    return pixels.byte().permute(0, 2, 3, 1).numpy()


def _heated(maps: Tensor, display: np.ndarray) -> np.ndarray:
    """Maps (n, h, w) in colours over pictures (n, H, W, 3) uint8; one scale for all."""
    values = maps.float().cpu().numpy()
    scale = ColourScale(0.0, -np.inf, float(np.percentile(values, _PERCENTILE)) or 1.0)
    return np.stack([heat(v, scale, p) for v, p in zip(values, display, strict=True)])


def _keep(
    extras: Mapping[str, Tensor], transform: ImageTransform, stem: Path, keep: Collection[str]
) -> None:
    """Write the pictures, maps and arrays of one image that are wanted."""
    for name, value in extras.items():
        kind = kind_of(value)
        if kind == "pictures" and kind in keep:
            picture = Image.fromarray(_rgb(value, transform)[0])
            save_png(picture, fitting(Path(f"{stem}_{name}.png")))
        elif kind in ("maps", "arrays") and kind in keep:
            array = value[0].float().cpu().numpy()
            target = fitting(Path(f"{stem}_{name}.npy"))
            with atomic(target) as partial, partial.open("wb") as stream:
                np.save(stream, array if kind == "maps" else array.astype(np.float16))
