"""HaloAE's parts against their straightforward formulations, in turn in one process, on one thread.

    python -m tests.bench.bench_haloae            everything, some four minutes
    python -m tests.bench.bench_haloae step       the training step and its memory alone

Both sides compute the same numbers (checked before timing). CPU seconds are compared; the best of
several turns counts. Straightforward means: all of VGG19, every map enlarged to 256 px and averaged
by unfolding; windows of the input unfolded, then projected; transposed convolutions; SSIM by a
depthwise convolution with five filterings. Memory is what the graph of one step keeps for its
backward pass, counted tensor by tensor, and the peak of a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from src.backbones.features import FeatureExtractor
from src.evaluation.speed import peak_memory_mb
from src.models.build import read_options
from src.models.haloae import losses as our_losses
from src.models.haloae.autoencoder import Bottleneck
from src.models.haloae.halo_attention import HaloAttention
from src.models.haloae.module import HaloAE
from src.models.haloae.options import (
    AttentionOptions,
    Border,
    HaloAEOptions,
    Mask,
    SsimOptions,
)
from tests.reference_haloae import (
    TransposedBottleneck,
    attention_unfold_then_project,
    features_by_unfold,
    ssim_by_convolution,
)

CONF = Path(__file__).parents[2] / "conf"
TURNS = 3
TAPS = ("features.1", "features.6", "features.11", "features.17")
LAST = "features.35"  # relu5_4: what the release runs up to


def vgg19(layers: tuple[str, ...]) -> FeatureExtractor:
    torch.manual_seed(0)
    return FeatureExtractor(
        name="vgg19.tv_in1k",
        layers=list(layers),
        weights="random",
        image_size=(256, 256),
        padding_mode="reflect",
        precision="float32",
        channels_last=True,
    )


class StraightforwardFeatures(nn.Module):
    """All of VGG19, four of its maps enlarged to the image and averaged by unfolding."""

    def __init__(self, padded: bool) -> None:
        super().__init__()
        self.network, self.padded = vgg19((*TAPS, LAST)), padded
        self.channels = 704

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        return features_by_unfold(self.network(image)[:4], image.shape[-1], self.padded)


def haloae(alignment: str = "clean") -> HaloAE:
    values = yaml.safe_load((CONF / "model" / "haloae.yaml").read_text())["model"]
    for key in ("_target_", "name", "stages"):
        del values[key]
    values |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "seed": 0}
    values["feature_alignment"] = alignment
    torch.manual_seed(0)
    return HaloAE(vgg19(TAPS), (256, 256), read_options(HaloAEOptions, values))


def make_straightforward(model: HaloAE) -> None:
    """Swap in the plain formulations, keeping every weight."""
    model.backbone = StraightforwardFeatures(model.backbone.padded)  # type: ignore[assignment]
    for module in model.modules():
        if isinstance(module, HaloAttention):
            module.forward = attention_unfold_then_project.__get__(module)  # type: ignore[method-assign]
    decoder = model.autoencoder.decoder
    for position, block in enumerate(decoder):
        assert isinstance(block, Bottleneck)
        decoder[position] = TransposedBottleneck(block)
    our_losses.ssim = lambda x, y, options: ssim_by_convolution(x, y).mean((1, 2, 3))  # type: ignore[assignment]


def training_step(model: HaloAE, images: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Losses of one original and its two pasted views, backward, Adam."""
    optimizer.zero_grad()
    total = model.weigh(model.losses(images, len(images) // 3), (0.3, 0.5, 0.2))
    total.backward()
    optimizer.step()
    return float(total.detach())


def best(run: Callable[[], Any]) -> float:
    run()
    seconds = []
    for _ in range(TURNS):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return min(seconds)


def kept_for_backward(run: Callable[[], Any]) -> float:
    """MiB of distinct storages that a forward pass keeps, parameters included."""
    storages: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        kept = run()
    del kept
    return sum(storages.values()) / 2**20


def features() -> None:
    image = torch.randn(1, 3, 256, 256)
    for alignment in ("clean", "padded"):
        ours, plain = haloae(alignment).backbone, StraightforwardFeatures(alignment == "padded")
        gap = (ours(image) - plain(image)).abs().max() / plain(image).abs().max()
        a, b = best(lambda f=ours: f(image)), best(lambda f=plain: f(image))
        print(
            f"block B, {alignment}: straightforward {b:.3f} s, ours {a:.3f} s an image, "
            f"ratio {b / a:.2f} (goal 2.5), greatest relative gap {gap:.1e}"
        )


def attention() -> None:
    for width, heads in ((58, 8), (234, 4), (703, 8)):
        one_attention(width, heads)


def one_attention(width: int, heads: int) -> None:
    x = torch.randn(2, width, 60, 60, requires_grad=True)
    torch.manual_seed(0)
    layer = HaloAttention(width, heads, AttentionOptions(12, 2, 16, Mask.correct))
    ways: dict[str, Callable[[], Tensor]] = {
        "unfold then project": lambda: attention_unfold_then_project(layer, x),
        "ours": lambda: layer(x),
    }
    seconds = {}
    for name, run in ways.items():
        assert (run() - ways["ours"]()).abs().max() < 1e-4
        seconds[name] = best(lambda f=run: f().sum().backward())
        ratio = seconds["unfold then project"] / seconds[name]
        memory = kept_for_backward(run) / len(x)
        print(
            f"attention, width {width}, 2 images, forward and backward: {name} "
            f"{seconds[name]:.3f} s, ratio {ratio:.2f} (goal 1.4), keeps {memory:.1f} MiB an image"
        )


def similarity() -> None:
    options = SsimOptions(11, 1.5, Border.zero)
    x = torch.rand(1, 704, 64, 64)
    y = torch.rand(1, 704, 64, 64, requires_grad=True)
    ours = best(lambda: our_losses.ssim(x, y, options).sum().backward())
    plain = best(lambda: ssim_by_convolution(x, y).mean().backward())
    kept = [
        kept_for_backward(run)
        for run in (lambda: ssim_by_convolution(x, y), lambda: our_losses.ssim(x, y, options))
    ]
    print(
        f"SSIM of 704 x 64 x 64, forward and backward: convolution {plain:.3f} s, matrices "
        f"{ours:.3f} s, ratio {plain / ours:.2f}; kept {kept[0]:.0f} and {kept[1]:.0f} MiB"
    )


def step() -> None:
    images = torch.randn(3, 3, 256, 256)
    found = {}
    for name in ("ours", "plain"):
        model = haloae()
        if name == "plain":
            make_straightforward(model)
        model.train()
        memory = kept_for_backward(lambda m=model: m.weigh(m.losses(images, 1), (0.3, 0.5, 0.2)))
        optimizer = model.configure_optimizers()
        first = training_step(model, images, optimizer)
        found[name] = (
            best(lambda m=model, o=optimizer: training_step(m, images, o)), memory, first,
        )  # fmt: skip
    (a, mem_a, loss_a), (b, mem_b, loss_b) = found["ours"], found["plain"]
    peaks = {name: int(_child(name)) for name in ("ours", "plain")}
    print(
        f"training step of 1 image (3 inputs, 256 px): straightforward {b:.2f} s, ours {a:.2f} s, "
        f"ratio {b / a:.2f}; first loss {loss_b:.5f} and {loss_a:.5f}"
    )
    print(
        f"kept for backward: straightforward {mem_b:.0f} MiB, ours {mem_a:.0f} MiB; peak of the "
        f"process {peaks['plain']} and {peaks['ours']} MiB"
    )


def peak(name: str) -> None:
    """Print the peak MiB of this process after two steps."""
    model = haloae()
    if name == "plain":
        make_straightforward(model)
    model.train()
    optimizer = model.configure_optimizers()
    for _ in range(2):
        training_step(model, torch.randn(3, 3, 256, 256), optimizer)
    print(int(peak_memory_mb()))


def _child(name: str) -> str:
    words = [sys.executable, "-m", "tests.bench.bench_haloae", "peak", name]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    if words[:1] == ["peak"]:
        peak(words[1])
        return
    parts = {"features": features, "attention": attention, "ssim": similarity, "step": step}
    for name in words or parts:
        parts[name]()
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
