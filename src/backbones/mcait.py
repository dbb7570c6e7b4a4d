"""MS-CaiT, the multi-scale transformer features of U-Flow: two CaiTs that look at one image.

U-Flow (Tailanian, Pardo, Musé, JMIV 2024), Sec. 3.1; official code mtailanian/uflow (AGPL-3.0,
nothing copied); CaiT itself is timm's (Apache-2.0; Touvron et al., ICCV 2021). A CaiT-M48 sees
448 pixels and gives a 28x28 map of 768 channels, a CaiT-S24 sees the same image at 224 pixels and
gives 14x14 of 384. Each is cut behind the block used and followed by its own final LayerNorm, so
the features are normalised per position already.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.backbones.features import PRECISIONS, autocast
from src.backbones.weights import digest, fill
from src.errors import ConfigError, only


class CaitPair(nn.Module):
    """Frozen maps of several CaiTs, finest first; the interface of `FeatureExtractor`.

    Args:
        name: what the pair is called in identities and logs.
        networks: timm names with weight tags, largest input first.
        blocks: how many transformer blocks of each are kept (the last one's output is used).
        weights: `auto` (WEIGHTS_DIR, then hub), one file per network, or `random` (tests only).
        image_size: (H, W) of the input; must be the square that the first network was trained on.
        size: that square's side, named in the config so that `transform` can use it.
        precision: see `FeatureExtractor`.
    """

    #: The maps went through a LayerNorm of their network: no further normalisation is needed.
    normalised = True

    def __init__(
        self,
        name: str,
        networks: Sequence[str],
        blocks: Sequence[int],
        weights: str | Sequence[str],
        image_size: tuple[int, int],
        size: int,
        precision: str,
    ) -> None:
        super().__init__()
        only("backbone.precision", [precision], PRECISIONS)
        self.name, self.names, self.precision = name, tuple(networks), precision
        files = [weights] * len(networks) if weights in ("auto", "random") else weights
        if isinstance(files, str) or len(files) != len(networks):
            raise ConfigError(
                f"backbone.weights must be auto or a list of {len(networks)} files.",
                found=f"{weights!r}",
                do="set backbone.weights=auto, or name one file per network in their order",
            )
        random = weights == "random"
        cut = [_truncated_cait(net, n, random) for net, n in zip(networks, blocks, strict=True)]
        self.sizes = [int(net.patch_embed.img_size[0]) for net in cut]
        side = self.sizes[0]
        if tuple(image_size) != (side, side) or size != side:
            raise ConfigError(
                f"The backbone {name} sees squares of {side} pixels only.",
                found=f"images of {image_size[0]}x{image_size[1]}",
                do=f"set transform.resize=[{side},{side}] transform.crop=null, or choose a "
                "convolutional backbone (backbone=wide_resnet50_2) for other sizes",
            )
        for net, network, file in zip(cut, networks, files, strict=True):
            fill(net, network, nn.Identity(), file)
        self.networks = nn.ModuleList(cut)
        self.requires_grad_(False)
        self.eval()
        self.channels = tuple(int(net.embed_dim) for net in cut)
        self.reductions = tuple(size // int(net.patch_embed.grid_size[0]) for net in cut)
        digests = "".join(map(digest, cut))
        self.weights_sha256 = hashlib.sha256(digests.encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Name, networks and a digest of their weights; equal means equal features."""
        return f"{self.name}[{'+'.join(self.names)}]@{self.weights_sha256[:16]}"

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Tensor]:
        """Images (B, 3, S, S), ImageNet-normalised -> one (B, C, h, w) float32 map per network."""
        maps = []
        for net, side in zip(self.networks, self.sizes, strict=True):
            view = image if side == image.shape[-1] else _shrink(image, side)
            with autocast(image, self.precision):
                maps.append(_cait_map(net, view).float())
        return maps


def _truncated_cait(name: str, kept: int, random: bool) -> Any:
    """A CaiT without the blocks, class attention and head that are never used."""
    import timm

    architecture = name.split(".")[0]
    only("backbone.networks", [architecture], timm.list_models("cait_*"))
    # Without memory first: the initial weights of 403 million parameters would be thrown away.
    with contextlib.nullcontext() if random else torch.device("meta"):
        net: Any = timm.create_model(architecture, pretrained=False, num_classes=0)
    if not 1 <= kept <= len(net.blocks):
        raise ConfigError(
            f"{architecture} has {len(net.blocks)} blocks.",
            found=f"backbone.blocks asks for the first {kept}",
            do="the paper keeps 41 of CaiT-M48 and 21 of CaiT-S24",
        )
    net.blocks = net.blocks[:kept]
    net.blocks_token_only = nn.ModuleList()
    del net.cls_token
    return net if random else net.to_empty(device="cpu")


def _shrink(image: Tensor, side: int) -> Tensor:
    """The authors' view for the smaller network: bicubic on the normalised tensor, corners aligned.

    No low-pass filter; a float32 operation also under autocast.
    """
    return F.interpolate(image.float(), size=(side, side), mode="bicubic", align_corners=True)


def _cait_map(net: Any, image: Tensor) -> Tensor:
    """Patch tokens behind the last kept block, through the network's final LayerNorm."""
    tokens = net.pos_drop(net.patch_embed(image) + net.pos_embed)  # (B, h*w, C)
    tokens = net.norm(net.blocks(tokens))
    return tokens.transpose(1, 2).unflatten(2, net.patch_embed.grid_size)  # (B, C, h, w)
