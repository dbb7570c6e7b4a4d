"""From the `model` and `backbone` config groups to a method."""

from __future__ import annotations

from typing import Any, cast

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from src.backbones.build import build_backbone
from src.identity import weights_fingerprint
from src.models.base import AnomalyModule

#: Keys of the `model` group that configure the experiment around the method, not its constructor.
_NOT_ARGUMENTS = ("_target_", "name", "stages", "recipe", "backbones")


def method_class(cfg: DictConfig) -> type[AnomalyModule]:
    """The class that `model._target_` names."""
    return cast(type[AnomalyModule], get_class(cfg.model._target_))


def fetch_weights(cfg: DictConfig, image_size: tuple[int, int]) -> str:
    """Fetch the weights of a run by building its model once; their fingerprint."""
    model = build_model(cfg, image_size)
    return weights_fingerprint(cfg) or str(getattr(model.backbone, "identity", ""))


def build_model(cfg: DictConfig, image_size: tuple[int, int]) -> AnomalyModule:
    """The method of a composed config for images of (H, W) pixels.

    A method with several backbones (an ensemble) lists their config names under `model.backbones`
    and gets them as one list.
    """
    options = cast(dict[str, Any], OmegaConf.to_container(cfg.model, resolve=True))
    stages, members = options.get("stages"), options.get("backbones")
    if members:
        backbone: Any = [
            build_backbone(
                cast(DictConfig, OmegaConf.merge(cfg.backbone, member)), stages, image_size
            )
            for member in cfg.model.backbones
        ]
    else:
        backbone = build_backbone(cfg.backbone, stages, image_size)
    for key in _NOT_ARGUMENTS:
        options.pop(key, None)
    return method_class(cfg)(backbone=backbone, image_size=image_size, **options)
