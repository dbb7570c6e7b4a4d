"""From the `backbone` config group to frozen features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from src.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def build_backbone(
    backbone: DictConfig, stages: list[int] | None, image_size: tuple[int, int]
) -> nn.Module | None:
    """The frozen feature extractor of a config, or None for methods that learn from pixels.

    Args:
        backbone: the `backbone` group; `layers` names modules, else `stages` picks from its list.
        stages: 1-based numbers of the stages a method wants (2 is `layer2` of a ResNet).
        image_size: (H, W) in pixels.
    """
    if backbone.name is None:
        return None
    options: dict[str, Any] = OmegaConf.to_container(backbone, resolve=True)  # type: ignore[assignment]
    known = options.pop("stages", None)
    for key in ("mean", "std"):
        options.pop(key)
    if "layers" in options and not options["layers"]:
        options["layers"] = _pick(known, stages, str(backbone.name))
    extractor = get_class(options.pop("_target_"))
    return extractor(image_size=image_size, **options)


def _pick(known: list[str] | None, stages: list[int] | None, name: str) -> list[str]:
    if not known or not stages or max(stages) > len(known) or min(stages) < 1:
        raise ConfigError(
            f"The method asks for stages {stages} of the backbone {name}.",
            found=f"its stages: {known}",
            do="name modules with backbone.layers=[...] or choose model.stages within range",
        )
    return [known[stage - 1] for stage in stages]
