"""The U-shaped normalising flow: features in, latents and log|det J| out.

U-Flow, Tailanian, Pardo and Musé, JMIV 2024 (arXiv 2211.12353), Sec. 3.2. The authors build it
from FrEIA's `AllInOneBlock` (github.com/mtailanian/uflow, AGPL-3.0; nothing is copied here, FrEIA
itself is MIT). `CouplingStep` computes the same function as FrEIA 0.2's block, except that the
fixed permutation is an index gather instead of a 1x1 convolution with a one-hot matrix (a fifth
of the flow's FLOPs and a third of its stored numbers), and that it draws from a given generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from src.errors import ConfigError

CLAMP = 2.0  # FrEIA AllInOneBlock default, used by the authors: |log scale| <= 2
SUBNET_GAIN = 0.1  # FrEIA: coupling coefficients start small
SOFTPLUS_BETA, SOFTPLUS_GAIN = 0.5, 0.1  # FrEIA: global scale = 0.1 softplus(theta, beta 0.5)
UNIT_SCALE = 2.0 * math.log(math.exp(5.0) - 1.0)  # theta whose global scale is 1: 9.98647850

Shape = tuple[int, int, int]  # channels, height, width of one image


class _Permute(torch.autograd.Function):
    """out[:, i] = x[:, order[i]], whose gradient is the inverse gather.

    The gradient of `index_select` is a scatter-add: slow, and not deterministic on CUDA.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(1, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return grad.index_select(1, order.argsort()), None


class CouplingStep(nn.Module):
    """One flow step: affine coupling, per-channel scale and offset, fixed permutation.

    x = [x1 | x2] along channels (C1 = ceil(C/2), C2 = floor(C/2));
    y2 = x2 exp(s) + t with s = 2 tanh(0.1 a_s), t = 0.1 a_t, [a_s | a_t] = subnet(x1);
    out = (scale [x1 | y2] + offset)[permutation];
    log|det J| = sum s + H W sum log(scale), one number per image.

    Everything but the two convolutions stays in the dtype of x (float32 in training), also
    under autocast: a log-determinant of 1e5 summed in bfloat16 is off by hundreds.
    """

    permutation: Tensor

    def __init__(self, channels: int, kernel_size: int, generator: torch.Generator) -> None:
        super().__init__()
        moved = channels // 2
        self.kept = channels - moved
        self.subnet = nn.Sequential(
            nn.Conv2d(self.kept, self.kept, kernel_size, padding="same"),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.kept, 2 * moved, kernel_size, padding="same"),
        )
        convolutions: Any = self.subnet[0], self.subnet[2]
        for conv in convolutions:  # torch's own initialisation
            bound = 1.0 / math.sqrt(conv.weight[0].numel())  # 1/sqrt(fan in), weights and bias
            for parameter in (conv.weight, conv.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self.global_scale = nn.Parameter(torch.full((1, channels, 1, 1), UNIT_SCALE))
        self.global_offset = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.register_buffer("permutation", torch.randperm(channels, generator=generator))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X (B, C, H, W) -> z of the same shape, log|det| (B,)."""
        x1, x2 = x[:, : self.kept], x[:, self.kept :]
        raw = self.subnet(x1).to(x.dtype) * SUBNET_GAIN  # (B, 2 C2, H, W)
        a_s, shift = raw.chunk(2, dim=1)
        log_scale = CLAMP * a_s.tanh()
        y = torch.cat((x1, x2 * log_scale.exp() + shift), dim=1)
        scale = SOFTPLUS_GAIN * F.softplus(self.global_scale, beta=SOFTPLUS_BETA)  # (1, C, 1, 1)
        y = y * scale + self.global_offset
        if torch.is_grad_enabled() and y.requires_grad:
            z = _Permute.apply(y, self.permutation)
        else:  # exporters know this one
            z = y.index_select(1, self.permutation)
        log_det = log_scale.sum(dim=(1, 2, 3)) + x.shape[2] * x.shape[3] * scale.log().sum()
        return z, log_det


class UShapedFlow(nn.Module):
    """Coarse to fine: flow stage, half of the channels are latent, the rest joins the next scale.

    `shapes` are the (C, H, W) of the features, finest first; each scale is half of the one before.
    `latent_shapes` are those of the latents, together as many numbers: the map is a bijection. The
    `apart` coarsest scales hand nothing up: flows of their own (ours).
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        flow_steps: int,
        kernel_sizes: Sequence[int],
        seed: int,
        apart: int = 0,
    ) -> None:
        super().__init__()
        check_shapes(shapes)
        if flow_steps < 1 or not kernel_sizes or any(k % 2 == 0 for k in kernel_sizes):
            raise ConfigError(
                "The flow needs at least one step and odd kernel sizes.",
                found=f"model.flow_steps={flow_steps}, model.kernel_sizes={list(kernel_sizes)}",
                do="the paper uses model.flow_steps=4 model.kernel_sizes=[3,1]",
            )
        self.shapes, self.latent_shapes = list(shapes), list(shapes)
        generator = torch.Generator().manual_seed(seed)
        joined = max(1, len(shapes) - apart)  # scales of the U
        self.rising = [0] * len(shapes)  # channels that each scale hands up
        stages: list[list[CouplingStep]] = [[] for _ in shapes]
        for scale in reversed(range(len(shapes))):
            channels, h, w = shapes[scale]
            if scale < joined - 1:
                channels += self.rising[scale + 1] // 4
            for n in range(flow_steps):
                kernel = kernel_sizes[n % len(kernel_sizes)]
                stages[scale].append(CouplingStep(channels, kernel, generator))
            self.rising[scale] = rising_channels(channels) if 0 < scale < joined else 0
            self.latent_shapes[scale] = (channels - self.rising[scale], h, w)
        # Checkpoints name a step by its node in FrEIA's graph. The split, shuffle and concatenation
        # between two scales are nodes too, and scales that nothing follows go on side by side.
        steps = nn.ModuleDict()
        for scale in range(joined - 1, 0, -1):
            node = (joined - 1 - scale) * (flow_steps + 3)
            steps.update({str(node + n): step for n, step in enumerate(stages[scale])})
        node = (joined - 1) * (flow_steps + 3)
        beside = zip(*stages[: joined - 1 : -1], stages[0], strict=True)
        steps.update({str(node + n): step for n, step in enumerate(chain(*beside))})
        self.graph = nn.ModuleDict({"module_list": steps})
        names = {step: name for name, step in steps.items()}
        self.stages = [[names[step] for step in stage] for stage in stages]

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Features (B, C, H, W) finest first -> latents finest first, log|det J| (B,)."""
        steps = cast(nn.ModuleDict, self.graph["module_list"])
        latents, rising = list(features), features[0][:, :0]
        log_dets: dict[str, Any] = dict.fromkeys(steps)  # in the order of the nodes
        for scale in reversed(range(len(features))):
            x = features[scale]
            if rising.shape[1]:
                x = torch.cat((x, F.pixel_shuffle(rising, 2)), dim=1)
            for name in self.stages[scale]:
                x, log_dets[name] = steps[name](x)
            rising, latents[scale] = x[:, : self.rising[scale]], x[:, self.rising[scale] :]
        return latents, sum(log_dets.values(), features[0].new_zeros(()))


def rising_channels(channels: int) -> int:
    """Channels that a scale hands up; a multiple of 4 so that they can be shuffled into pixels."""
    return channels // 8 * 4


def check_shapes(shapes: Sequence[Shape]) -> None:
    """Refuse feature shapes (C, H, W), finest first, that cannot form the U."""
    for (_, height, width), (channels, low_height, low_width) in pairwise(shapes):
        if (height, width) != (2 * low_height, 2 * low_width):
            raise ConfigError(
                "U-Flow joins a scale with one of half its height and width.",
                found=f"feature maps of {height}x{width} and {low_height}x{low_width}",
                do="choose an image size that is a multiple of the coarsest stride, and layers "
                "whose strides double (4, 8, 16)",
            )
        if rising_channels(channels) == 0:
            raise ConfigError(
                "A coarse feature map has too few channels to split.",
                found=f"{channels} channels, at least 8 are needed",
                do="choose other backbone layers",
            )


def negative_log_likelihood(latents: Sequence[Tensor], log_det: Tensor) -> Tensor:
    """Sum over scales of |z|^2/2 minus log|det J|, per image (B,); constant D/2 log 2pi left out.

    The sum runs over all D latent numbers and is not divided by D (official code): values are
    around 1e5, so it must be float32.
    """
    energy = torch.stack([z.float().square().sum(dim=(1, 2, 3)) for z in latents]).sum(dim=0)
    return 0.5 * energy - log_det.float()
