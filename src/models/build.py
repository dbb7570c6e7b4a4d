"""From config groups to a method on its frozen features, and to its optimizer and schedule."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from torch import nn

from src.errors import ConfigError, did_you_mean
from src.models.base import AnomalyModule

#: Keys of the `model` group that configure the experiment around the method, not its constructor.
_NOT_OPTIONS = {"_target_", "name", "stages", "recipe", "backbones"}

T = TypeVar("T")


def method_class(cfg: DictConfig) -> type[AnomalyModule]:
    """The class that `model._target_` names."""
    return cast(type[AnomalyModule], get_class(cfg.model._target_))


def build_model(cfg: DictConfig, image_size: tuple[int, int]) -> AnomalyModule:
    """The method of a composed config for images of (H, W) pixels.

    A method with several backbones (an ensemble) lists what they change of the `backbone` group
    under `model.backbones` and gets them as one list.
    """
    group, method = _plain(cfg.model), cast(Any, method_class(cfg))
    given = {key: value for key, value in group.items() if key not in _NOT_OPTIONS}
    options, members = read_options(method.Options, given), group.get("backbones")
    window = getattr(getattr(options, "windows", None), "size", None)
    seen = (window, window) if window else image_size
    networks = [
        build_backbone(_plain(cfg.backbone) | member, group.get("stages"), seen)
        for member in members or [{}]
    ]
    return cast(AnomalyModule, method(networks if members else networks[0], image_size, options))


def build_backbone(
    group: dict[str, Any], wanted: list[int] | None, image_size: tuple[int, int]
) -> nn.Module | None:
    """The frozen features of a `backbone` group, or None for methods that learn from pixels.

    `wanted`: 1-based numbers of the stages to take where the group names no layers.
    """
    if group["name"] is None:
        return None
    around = {"_target_", "stages", "mean", "std", "step"}
    options = {key: group[key] for key in group if key not in around}
    if "layers" in options and not options["layers"]:
        known = group.get("stages") or []
        if not wanted or min(wanted) < 1 or max(wanted) > len(known):
            raise ConfigError(
                f"The method asks for stages {wanted} of the backbone {group['name']}.",
                found=f"its stages: {known}",
                do="name modules with backbone.layers=[...] or choose model.stages within range",
            )
        options["layers"] = [known[stage - 1] for stage in wanted]
    return get_class(group["_target_"])(image_size=image_size, **options)


def read_options(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass `kind` (see `AnomalyModule.Options`), filled and checked by OmegaConf.

    `values`: resolved, as they stand under `model`; nested dataclasses and enums are made as well.
    ConfigError when a key is unknown or missing, or its value has another type.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), dict(values))
        return cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        key, known = f"model.{error.full_key}", getattr(error.object_type, "__annotations__", ())
        unknown = isinstance(error, ConfigKeyError)
        raise ConfigError(
            f"{key} is no option." if unknown else f"{key} does not fit.",
            found=str(error.msg or error).splitlines()[0],
            do=did_you_mean(str(error.key), known) if unknown else "see conf/model",
        ) from error


def make(key: str, node: Mapping[str, Any], first: object, **known: object) -> Any:
    """What stands at `model.optimizer` for parameters, or `model.scheduler` for an optimizer.

    `node` has `_target_` and `_partial_: true`; `known`: what only the run knows, such as its
    steps. ConfigError when it cannot be made.
    """
    try:
        return instantiate(dict(node))(first, **known)
    except (InstantiationException, TypeError, ValueError) as error:
        raise ConfigError(
            f"model.{key} cannot be made.",
            found=f"{node.get('_target_')}: {str(error).splitlines()[0]}",
            do=f"give model.{key}._target_ a class of torch.optim and the numbers that it takes",
        ) from error


def _plain(group: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(group, resolve=True, enum_to_str=True))
