"""The U-shaped normalising flow: features in, latents and log|det J| out.

U-Flow, Tailanian, Pardo and Musé, JMIV 2024 (arXiv 2211.12353), Sec. 3.2. The authors build it
from FrEIA's `AllInOneBlock` (github.com/mtailanian/uflow, AGPL-3.0; nothing is copied here, FrEIA
itself is MIT). `CouplingStep` computes the same function as FrEIA 0.2's block, except that the
fixed permutation is an index gather instead of a 1x1 convolution with a one-hot matrix (a fifth
of the flow's FLOPs and a third of its stored numbers), and that it draws from a given generator.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from FrEIA.framework import GraphINN, InputNode, Node, OutputNode
from FrEIA.modules import Concat, InvertibleModule, Split
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
    """Channel gather whose gradient is the inverse gather.

    The gradient of `index_select` is a scatter-add: slow, and not deterministic on CUDA.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(1, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(1, inverse), None, None


def permute(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """out[:, i] = x[:, order[i]]; `inverse` is order's inverse, for the gradient."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Permute.apply(x, order, inverse)
    return x.index_select(1, order)  # exporters know this one


class CouplingStep(InvertibleModule):
    """One flow step: affine coupling, per-channel scale and offset, fixed permutation.

    x = [x1 | x2] along channels (C1 = ceil(C/2), C2 = floor(C/2));
    y2 = x2 exp(s) + t with s = 2 tanh(0.1 a_s), t = 0.1 a_t, [a_s | a_t] = subnet(x1);
    out = (scale [x1 | y2] + offset)[permutation];
    log|det J| = sum s + H W sum log(scale), one number per image.

    Everything but the two convolutions stays in the dtype of x (float32 in training), also
    under autocast: a log-determinant of 1e5 summed in bfloat16 is off by hundreds.
    """

    permutation: Tensor
    inverse: Tensor

    def __init__(
        self,
        dims_in: Sequence[Shape],
        dims_c: Sequence[Shape] | None = None,
        *,
        kernel_size: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(list(dims_in), list(dims_c or []))
        channels = dims_in[0][0]
        kept, moved = channels - channels // 2, channels // 2
        self.kept = kept
        self.subnet = nn.Sequential(
            nn.Conv2d(kept, kept, kernel_size, padding="same"),
            nn.ReLU(inplace=True),
            nn.Conv2d(kept, 2 * moved, kernel_size, padding="same"),
        )
        _draw_conv_weights(self.subnet, generator)
        self.global_scale = nn.Parameter(torch.full((1, channels, 1, 1), UNIT_SCALE))
        self.global_offset = nn.Parameter(torch.zeros(1, channels, 1, 1))
        order = torch.randperm(channels, generator=generator)
        self.register_buffer("permutation", order)
        self.register_buffer("inverse", order.argsort(), persistent=False)
        self.register_load_state_dict_post_hook(_refresh_inverse)

    def forward(
        self, x_or_z: Sequence[Tensor], c: Any = None, rev: bool = False, jac: bool = True
    ) -> tuple[tuple[Tensor], Tensor]:
        """FrEIA's calling convention: a 1-tuple (B, C, H, W) in and out, log|det| (B,)."""
        if rev:
            x, log_det = self.reversed(x_or_z[0])
            return (x,), log_det
        z, log_det = self.step(x_or_z[0])
        return (z,), log_det

    def step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Forward: x (B, C, H, W) -> z of the same shape, log|det| (B,)."""
        x1, x2 = x[:, : self.kept], x[:, self.kept :]
        log_scale, shift = self._coefficients(x1, x.dtype)
        y = torch.cat((x1, x2 * log_scale.exp() + shift), dim=1)
        scale, log_det = self._global_scale(x)
        y = y * scale + self.global_offset
        z = permute(y, self.permutation, self.inverse)
        return z, log_scale.sum(dim=(1, 2, 3)) + log_det

    def reversed(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Backward: z -> x, with the log|det| of the backward direction (B,)."""
        scale, log_det = self._global_scale(z)
        y = (permute(z, self.inverse, self.permutation) - self.global_offset) / scale
        x1, y2 = y[:, : self.kept], y[:, self.kept :]
        log_scale, shift = self._coefficients(x1, z.dtype)
        x = torch.cat((x1, (y2 - shift) * (-log_scale).exp()), dim=1)
        return x, -(log_scale.sum(dim=(1, 2, 3)) + log_det)

    def output_dims(self, input_dims: list[Shape]) -> list[Shape]:
        """Shapes do not change."""
        return input_dims

    def _coefficients(self, x1: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        raw = self.subnet(x1).to(dtype) * SUBNET_GAIN  # (B, 2 C2, H, W)
        log_scale, shift = raw.chunk(2, dim=1)
        return CLAMP * log_scale.tanh(), shift

    def _global_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale (1, C, 1, 1) and its log|det| for one image of x."""
        scale = SOFTPLUS_GAIN * F.softplus(self.global_scale, beta=SOFTPLUS_BETA)
        return scale, x.shape[2] * x.shape[3] * scale.log().sum()


class ShuffleUp(InvertibleModule):
    """Four channels become a 2x2 block of pixels; equals FrEIA's IRevNetUpsampling bit by bit."""

    def __init__(self, dims_in: Sequence[Shape], dims_c: Sequence[Shape] | None = None) -> None:
        super().__init__(list(dims_in), list(dims_c or []))

    def forward(
        self, x_or_z: Sequence[Tensor], c: Any = None, rev: bool = False, jac: bool = True
    ) -> tuple[tuple[Tensor], int]:
        """(B, 4C, H, W) -> (B, C, 2H, 2W); log|det| is 0."""
        shuffle = F.pixel_unshuffle if rev else F.pixel_shuffle
        return (shuffle(x_or_z[0], 2),), 0

    def output_dims(self, input_dims: list[Shape]) -> list[Shape]:
        """Shape after shuffling."""
        channels, height, width = input_dims[0]
        return [(channels // 4, 2 * height, 2 * width)]


class UShapedFlow(nn.Module):
    """Coarse to fine: flow stage, half of the channels are latent, the rest joins the next scale.

    `shapes` are the (C, H, W) of the features, finest first; each scale is half of the one
    before. `latent_shapes` are those of the latents, finest first; together they hold as many
    numbers as the features, for the map is a bijection. The `apart` coarsest scales take no part in
    the U.

    The connections are a FrEIA `GraphINN`, which runs in both directions.
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
        self.shapes = list(shapes)
        self.graph, self.latent_shapes = _build_graph(
            self.shapes, flow_steps, kernel_sizes, torch.Generator().manual_seed(seed), apart
        )

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Features (B, C, H, W) finest first -> latents finest first, log|det J| (B,)."""
        # What FrEIA does, without the zeros that it makes on the CPU: a GPU would wait for each.
        found = {(node, 0): maps for node, maps in zip(self.graph.in_nodes, features, strict=True)}
        log_det = features[0].new_zeros(features[0].shape[0])
        for node in self.graph.node_list:
            if node.module is not None:
                outputs, own = node.module([found[place] for place in node.inputs])
                found |= {(node, number): maps for number, maps in enumerate(outputs)}
                log_det = log_det + own
        return [found[node.inputs[0]] for node in self.graph.out_nodes], log_det

    def inverse(self, latents: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Latents finest first -> features finest first, log|det| of the inverse (B,)."""
        features, log_det = self.graph(list(latents), rev=True)
        return list(features), log_det


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


def _draw_conv_weights(subnet: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's default convolution initialisation, from a generator."""
    for conv in subnet.modules():
        if isinstance(conv, nn.Conv2d) and conv.bias is not None:
            bound = 1.0 / math.sqrt(conv.weight[0].numel())  # 1/sqrt(fan in), weights and bias
            for parameter in (conv.weight, conv.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)


def _refresh_inverse(step: Any, _keys: Any) -> None:
    step.inverse.copy_(step.permutation.argsort())


def _build_graph(
    shapes: Sequence[Shape],
    flow_steps: int,
    kernel_sizes: Sequence[int],
    generator: torch.Generator,
    apart: int,
) -> tuple[GraphINN, list[Shape]]:
    """The FrEIA graph and the shapes of its latents, finest first.

    The `apart` coarsest scales hand nothing up: flows of their own (ours).
    """
    nodes: list[Node] = [InputNode(*shape, name=f"features_{i}") for i, shape in enumerate(shapes)]
    inputs = list(nodes)
    outputs: list[Node] = []
    rising: Node | None = None
    for scale in reversed(range(len(shapes))):
        last = inputs[scale]
        if rising is not None:
            up = Node(rising, ShuffleUp, {}, name=f"up_{scale}")
            last = Node([last.out0, up.out0], Concat, {}, name=f"cat_{scale}")
            nodes += [up, last]
        for n in range(flow_steps):
            arguments = {"kernel_size": kernel_sizes[n % len(kernel_sizes)], "generator": generator}
            last = Node(last, CouplingStep, arguments, name=f"flow{shapes[scale][2]}_step{n}")
            nodes.append(last)
        latent: Any = last.out0
        rising = None
        if 0 < scale < len(shapes) - apart:
            channels = last.output_dims[0][0]
            sections = [rising_channels(channels), channels - rising_channels(channels)]
            split = Node(last, Split, {"section_sizes": sections}, name=f"split_{scale}")
            nodes.append(split)
            rising, latent = split.out0, split.out1
        outputs.append(OutputNode(latent, name=f"latent_{scale}"))
    outputs.reverse()
    graph = GraphINN(nodes + outputs, force_tuple_output=True)
    return graph, [out.input_dims[0] for out in outputs]
