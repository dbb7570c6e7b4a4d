"""What can be kept of every image: error maps, reconstructions and a table of losses.

The release writes its loss table with the true label inside (cross-entropy against it) and copies
two columns; here `probability_pasted` is the softmax output and every column is its own loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.data.samples import Sample
from src.files import atomic, fitting, shown, write_rows
from src.models.haloae.figures import reconstruction_sheet
from src.models.haloae.losses import reconstruction_losses
from src.models.haloae.scoring import feature_error, image_error
from src.result import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from src.models.haloae.module import HaloAE

_SHEET_ROWS = 8


class Anatomy(NamedTuple):
    """One batch seen from inside; everything on the CPU, float32."""

    image: Tensor  # (B, 3, H, W) RGB in [0, 1]
    reconstruction: Tensor | None  # (B, 3, H, W) RGB, clamped to [0, 1]
    features: Tensor  # (B, C, h, w) reconstructed
    feature_error: Tensor  # (B, h, w)
    image_error: Tensor | None  # (B, 2 h, 2 w)
    losses: dict[str, Tensor]  # each (B,)
    prediction: Prediction


@torch.no_grad()
def dissect(model: HaloAE, image: Tensor) -> Anatomy:
    """Everything HaloAE computes for normalised images (B, 3, H, W), in evaluation mode."""
    model.eval()
    image = image.to(model.device)
    features = model.features(image)
    out = model.autoencoder(features)
    losses: dict[str, Tensor] = {}
    pairs = {"features": (out.features, features), "image": (out.image, image)}
    for name, (rebuilt, target) in pairs.items():
        if rebuilt is not None:
            squared, dissimilar = reconstruction_losses(rebuilt, target, model.ssim)
            losses |= {f"mse_{name}": squared, f"dssim_{name}": dissimilar}
    if out.logits is not None:
        losses["probability_pasted"] = out.logits.float().softmax(1)[:, 1]
    losses["mean_of_losses"] = torch.stack(list(losses.values())).mean(0)
    if out.logits is not None:
        losses |= {"logit_original": out.logits[:, 0], "logit_pasted": out.logits[:, 1]}
    errors = None if out.image is None else image_error(out.image, image)
    prediction = model.score(image, features)
    return Anatomy(
        (image * model.std + model.mean).clamp(0, 1).cpu(),
        None if out.image is None else (out.image * model.std + model.mean).clamp(0, 1).cpu(),
        out.features.float().cpu(),
        feature_error(out.features, features).cpu(),
        None if errors is None else errors.cpu(),
        {name: value.float().cpu() for name, value in losses.items()},
        Prediction(prediction.score.cpu(), prediction.anomaly_map.cpu()),
    )


def write_records(
    model: HaloAE,
    loader: Iterable[dict[str, Tensor]],
    samples: Sequence[Sample],
    folder: Path,
) -> list[Path]:
    """Write what `model.save_options` asks for, one image at a time; returns the files.

    Files: `<folder>/<defect>/<name>_feature_error.npy`, `_image_error.npy` (float32),
    `_features.npy` (float16: 5.8 MB an image at 256 px), `_reconstruction.png`, and
    `<folder>/losses.csv`.
    """
    keep = model.save_options
    written: list[Path] = []
    rows: list[dict[str, object]] = []
    if not (keep.maps or keep.recon_image or keep.recon_features or keep.losses):
        return written
    for batch in loader:
        anatomy = dissect(model, batch["image"])
        for position, index in enumerate(batch["index"].tolist()):
            sample = samples[index]
            written += _write_image(anatomy, position, sample, folder, model)
            rows.append(
                {"path": shown(sample.image_path), "defect": sample.defect}
                | {name: float(value[position]) for name, value in anatomy.losses.items()}
            )
    if keep.losses and rows:
        written.append(folder / "losses.csv")
        write_rows(written[-1], rows)
    return written


def write_sheet(
    model: HaloAE, loader: Iterable[dict[str, Tensor]], samples: Sequence[Sample], path: Path
) -> Path | None:
    """A picture of one image per defect type, as `sheet` draws it; None without images."""
    chosen: dict[str, Tensor] = {}
    for batch in loader:
        for image, index in zip(batch["image"], batch["index"].tolist(), strict=True):
            if len(chosen) < _SHEET_ROWS:
                chosen.setdefault(samples[index].defect, image.cpu())
    if not chosen:
        return None
    figure = sheet(model, torch.stack(list(chosen.values())), list(chosen))
    with atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
    return path


def sheet(model: HaloAE, images: Tensor, captions: Sequence[str]) -> Figure:
    """Input, reconstruction, error maps and overlay of normalised images (n, 3, H, W)."""
    seen = dissect(model, images)
    rebuilt = seen.reconstruction
    return reconstruction_sheet(
        seen.image.permute(0, 2, 3, 1).numpy(),
        None if rebuilt is None else rebuilt.permute(0, 2, 3, 1).numpy(),
        seen.feature_error.numpy(),
        None if seen.image_error is None else seen.image_error.numpy(),
        seen.prediction.anomaly_map.numpy(),
        captions,
    )


def _write_image(
    anatomy: Anatomy, position: int, sample: Sample, folder: Path, model: HaloAE
) -> list[Path]:
    keep, arrays = model.save_options, {}
    if keep.maps:
        arrays["feature_error"] = anatomy.feature_error[position].numpy()
        if anatomy.image_error is not None:
            arrays["image_error"] = anatomy.image_error[position].numpy()
    if keep.recon_features:
        arrays["features"] = anatomy.features[position].numpy().astype(np.float16)
    place = folder / sample.defect
    stem = sample.image_path.stem
    written = []
    for name, array in arrays.items():
        path = fitting(place / f"{stem}_{name}.npy")
        with atomic(path) as partial, partial.open("wb") as stream:
            np.save(stream, array)
        written.append(path)
    if keep.recon_image and anatomy.reconstruction is not None:
        pixels = anatomy.reconstruction[position].permute(1, 2, 0).mul(255).round()
        path = fitting(place / f"{stem}_reconstruction.png")
        with atomic(path) as partial:
            Image.fromarray(pixels.byte().numpy()).save(partial, format="PNG")
        written.append(path)
    return written
