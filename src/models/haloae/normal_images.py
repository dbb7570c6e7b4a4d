"""What a trained model takes from normal images: mean error maps, and a grade without labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from src.evaluation.ranking import auroc
from src.models.haloae.cutpaste import cut_and_paste, seeded_generator

if TYPE_CHECKING:
    from src.models.haloae.module import HaloAE

_REPEATS = 4  # pasted versions of each held-out image and kind


@torch.no_grad()
def mean_errors(model: HaloAE, images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean error maps over batches of normalised images (B, 3, H, W), float32.

    Returns:
        (h, w) of the features and (2 h, 2 w) of the image; zero where the model's map needs none.
    """
    of_features = torch.zeros_like(model.normal_features, dtype=torch.float64)
    of_image = torch.zeros_like(model.normal_image, dtype=torch.float64)
    count = 0
    for image in images:
        image = image.to(model.device)
        from_features, from_image = model.errors(image, model.features(image))
        if from_features is not None:
            of_features += from_features.sum(0, dtype=torch.float64)
        if from_image is not None:
            of_image += from_image.sum(0, dtype=torch.float64)
        count += len(image)
    return of_features.div(max(count, 1)).float(), of_image.div(max(count, 1)).float()


@torch.no_grad()
def cutpaste_auroc(model: HaloAE, images: Iterable[Tensor]) -> float | None:
    """How well the score tells held-out normal images from themselves with a piece pasted in.

    No label enters, so searches may maximise it. Rectangles and scars count alike, always the same
    ones. ours: a stand-in for defects; it ranks models, it does not predict their AUROC.

    Returns:
        The area in [0, 1], or None without images.
    """
    generator = seeded_generator(0)
    scores: list[Tensor] = []
    pasted: list[bool] = []
    for batch in images:
        image = batch.to(model.device)
        plain = (image * model.std + model.mean).clamp(0, 1)
        shown = [image]
        for _ in range(_REPEATS):
            shown += [
                (cut_and_paste(plain, mode, model.cutpaste, generator) - model.mean) / model.std
                for mode in ("normal", "scar")
            ]
        for position, view in enumerate(shown):
            scores.append(model(view).score.cpu())
            pasted += [position > 0] * len(view)
    if not scores:
        return None
    return float(auroc(torch.cat(scores).numpy(), pasted))
