"""From the `model` and `backbone` config groups to a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from src.backbones.build import build_backbone
from src.errors import ConfigError, did_you_mean
from src.models.base import AnomalyModule

#: Keys of the `model` group that configure the experiment around the method, not its constructor.
_NOT_ARGUMENTS = ("_target_", "name", "stages", "recipe", "backbones")

T = TypeVar("T")


def method_class(cfg: DictConfig) -> type[AnomalyModule]:
    """The class that `model._target_` names."""
    return cast(type[AnomalyModule], get_class(cfg.model._target_))


def build_model(cfg: DictConfig, image_size: tuple[int, int]) -> AnomalyModule:
    """The method of a composed config for images of (H, W) pixels.

    A method with several backbones (an ensemble) lists their config names under `model.backbones`
    and gets them as one list.
    """
    options = cast(
        dict[str, Any], OmegaConf.to_container(cfg.model, resolve=True, enum_to_str=True)
    )
    stages, members = options.get("stages"), options.get("backbones")
    for key in _NOT_ARGUMENTS:
        options.pop(key, None)
    method = cast(Any, method_class(cfg))
    typed = read_options(method.Options, options)
    size = getattr(getattr(typed, "windows", None), "size", None)
    seen = (size, size) if size else image_size
    if members:
        backbone: Any = [
            build_backbone(cast(DictConfig, OmegaConf.merge(cfg.backbone, member)), stages, seen)
            for member in cfg.model.backbones
        ]
    else:
        backbone = build_backbone(cfg.backbone, stages, seen)
    return cast(AnomalyModule, method(backbone, image_size, typed))


def read_options(kind: type[T], values: Mapping[str, Any], key: str = "model") -> T:
    """The dataclass `kind`, filled and checked by OmegaConf, nested ones and enums as well.

    Args:
        kind: options of a method, one field a key; see `AnomalyModule.Options`.
        values: what stands in the configuration, resolved.
        key: where it stands there, for the message.

    Raises:
        ConfigError: a key is unknown or missing, or its value has another type.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), dict(values))
        return cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        found, first = f"{key}.{error.full_key}", str(error.msg or error).splitlines()[0]
        known = map(str, getattr(error.object_type, "__dataclass_fields__", ()))
        unknown = isinstance(error, ConfigKeyError)
        raise ConfigError(
            f"{found} is no option." if unknown else f"{found} does not fit.",
            found=first,
            do=did_you_mean(str(error.key), known) if unknown else "see conf/model",
        ) from error
