"""What U-Flow costs: segmentation per image, a flow step, a training step with cached features.

    python -m tests.bench.bench_uflow            # all; some three minutes on two cores
    python -m tests.bench.bench_uflow nfa flow   # or some of: nfa, flow, cache, flops

`nfa` compares the one-pass tree with a straightforward one (below): every region keeps the list
of its pixels, and pruning and merging alternate on an explicit tree. `flow` compares a step with
FrEIA's AllInOneBlock of the same weights. `cache` trains with and without cached features of
EfficientNet-Lite0. `flops` counts the same for MS-CaiT, whose weights are not needed for that.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.morphology import max_tree
from torch.utils.flop_counter import FlopCounterMode

from src.backbones.cache import FeatureCache
from src.backbones.features import FeatureExtractor
from src.backbones.mcait import _cait_map, _shrink, _truncated_cait
from src.models.uflow.features import FeatureNorm
from src.models.uflow.flow import CouplingStep, UShapedFlow, negative_log_likelihood
from src.models.uflow.nfa import log_nfa, tree_log_probability
from src.models.uflow.options import NfaOptions
from tests.reference_uflow import freia_block

PAPER = NfaOptions("tree", "bound", "clamp", "asymptotic", "total", False)
MCAIT = [(768, 28, 28), (384, 14, 14)]


# --- a straightforward tree ----------------------------------------------------------------------


def straightforward(energy: NDArray, channels: int) -> NDArray:
    """The same map from an explicit tree whose nodes hold their pixels."""
    pixels, children, parent = _explicit_tree(energy)
    flat = energy.ravel()
    log_p = {}
    for node, inside in pixels.items():
        t = min(float(flat[p]) for p in inside)
        bound = -len(inside) * channels / 2 * (t - 1 - math.log(t)) / math.log(10)
        log_p[node] = bound if t > 1 else 0.0
    merged = True
    while merged:
        _prune(children, parent, log_p)
        merged = _merge(children, parent, log_p)
    result = np.zeros(energy.size)
    for node in [n for n in children if not children[n]]:
        result[pixels[node]] = log_p[node]
    return result.reshape(energy.shape)


def _explicit_tree(energy: NDArray) -> tuple[dict, dict, dict]:
    parent_image, order = max_tree(energy, connectivity=1)
    above, flat = parent_image.ravel(), energy.ravel()
    head = {}
    for p in order.tolist():
        q = int(above[p])
        head[p] = p if p == order[0] or flat[p] != flat[q] else head[q]
    pixels: dict[int, list[int]] = {}
    parent: dict[int, int | None] = {}
    for p in order.tolist()[::-1]:
        pixels.setdefault(head[p], []).append(p)
    for node in [p for p in order.tolist()[::-1] if head[p] == p]:
        parent[node] = None if node == order[0] else head[int(above[node])]
        if parent[node] is not None:
            pixels[parent[node]] += pixels[node]
    children: dict[int, list[int]] = {node: [] for node in pixels}
    for node, up in parent.items():
        if up is not None:
            children[up].append(node)
    return pixels, children, parent


def _prune(children: dict, parent: dict, log_p: dict) -> None:
    for leaf in [n for n in children if not children[n]]:
        branch, node = [leaf], parent[leaf]
        while node is not None and len(children[node]) == 1:
            branch.append(node)
            node = parent[node]
        keep = min(branch, key=lambda n: log_p[n])  # the first, deepest, wins ties
        if node is not None:
            children[node].remove(branch[-1])
            children[node].append(keep)
        for n in branch:
            if n != keep:
                del children[n], parent[n]
        children[keep], parent[keep] = [], node


def _merge(children: dict, parent: dict, log_p: dict) -> bool:
    merged = False
    for node in list(children):
        below = children[node]
        if len(below) < 2 or any(children[n] for n in below):
            continue
        if log_p[node] <= min(log_p[n] for n in below):
            for n in below:
                del children[n], parent[n]
            children[node], merged = [], True
    return merged


# --- measurements --------------------------------------------------------------------------------


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Median over `repeats` calls after one to warm up."""
    function()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken)


def alternating(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list:
    """Best times of two functions that take turns: other programs only ever add to a time."""
    taken: list[list[float]] = [[], []]
    first(), second()
    for _ in range(rounds):
        for times, function in zip(taken, (first, second), strict=True):
            began = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - began))
    return [min(times) for times in taken]


def energy_map(side: int, channels: int, kind: str) -> NDArray:
    """A map as the latents of an image make it: noise, a defect on noise, or a ramp."""
    rng = np.random.default_rng(0)
    if kind == "ramp":  # the worst case: one chain as long as the map has pixels
        return np.linspace(0.5, 2.0, side * side, dtype=np.float32).reshape(side, side)
    energy = rng.chisquare(channels, (side, side)) / channels
    if kind == "defect":
        energy[side // 3 : side // 2, side // 3 : side // 2] *= 2.0
    return energy.astype(np.float32)


def bench_nfa() -> None:
    """Segmentation of one scale and of whole images, one thread."""
    torch.set_num_threads(1)
    print("log NFA of one scale, ms, one core        ours   straightforward   ratio")
    for side, channels in ((28, 816), (64, 84)):
        for kind in ("noise", "defect", "ramp"):
            energy = energy_map(side, channels, kind)
            slow_map, ours = straightforward(energy, channels), milliseconds(
                lambda e=energy, c=channels: tree_log_probability(e, c, PAPER), 15
            )  # fmt: skip
            fast_map = tree_log_probability(energy, channels, PAPER)
            np.testing.assert_allclose(fast_map, slow_map, rtol=1e-6, atol=1e-9)
            slow = milliseconds(lambda e=energy, c=channels: straightforward(e, c), 3)
            print(f"  {side}x{side} {kind:8s} {ours:24.2f} {slow:15.1f} {slow / ours:8.1f}x")
    for name, shapes in (
        ("MS-CaiT at 448", [(816, 28, 28), (192, 14, 14)]),
        ("ResNet18 at 256", [(84, 64, 64), (80, 32, 32), (128, 16, 16)]),
    ):
        latents = [torch.randn(1, *shape) for shape in shapes]
        taken = milliseconds(lambda z=latents: log_nfa(z, (256, 256), PAPER), 9)
        print(f"  {name}, all scales to 256 px: {taken:.1f} ms")


def bench_flow() -> None:
    """Forward and backward of one coupling step beside FrEIA's block."""
    print("flow step, ms, forward+backward           ours             FrEIA   ratio")
    for channels, side, batch in ((816, 28, 4), (84, 64, 8), (50, 32, 16)):
        for kernel in (3, 1):
            shape = (channels, side, side)
            block = freia_block(shape, kernel)
            step = CouplingStep([shape], kernel_size=kernel, generator=torch.Generator())
            x = torch.randn(batch, *shape)

            def run(module: torch.nn.Module, x: torch.Tensor = x) -> None:
                (z,), log_det = module((x,))
                (0.5 * z.square().sum() - log_det.sum()).backward()

            ours, theirs = alternating(lambda s=step: run(s), lambda b=block: run(b), 12)
            print(
                f"  C={channels} {side}x{side} kernel {kernel} batch {batch:2d} {ours:14.1f} "
                f"{theirs:17.1f} {theirs / ours:7.2f}x"
            )


def bench_cache() -> None:
    """Training step on EfficientNet-Lite0 features, 256 px, batch 16."""
    layers, size = ["blocks.2", "blocks.4"], (256, 256)
    backbone = FeatureExtractor(
        "tf_efficientnet_lite0", layers, "random", size, None, "float32", True
    )
    shapes = [
        (c, 256 // s, 256 // s) for c, s in zip(backbone.channels, backbone.reductions, strict=True)
    ]
    image, index = torch.randn(16, 3, 256, 256), torch.arange(16)

    def stepper(place: str) -> Callable[[], None]:
        cache = FeatureCache(place, "unused", 1.0, "float32", backbone.identity)
        flow, norm = UShapedFlow(shapes, 4, [3, 1], 0), FeatureNorm(shapes, "layer", False)
        adam = torch.optim.Adam(flow.parameters(), lr=1e-3)

        def step() -> None:
            maps, _ = norm(cache.fetch(image, index, backbone))
            loss = negative_log_likelihood(*flow(maps)).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()

        return step

    cached, uncached = alternating(stepper("memory"), stepper("off"), 7)
    print(
        f"training step, EfficientNet-Lite0 {list(shapes)}, batch 16: cached {cached:.0f} ms, "
        f"uncached {uncached:.0f} ms, {uncached / cached:.1f}x"
    )


def bench_flops() -> None:
    """Floating-point operations of a training step per image with MS-CaiT, counted on `meta`."""
    with torch.device("meta"), torch.no_grad():
        large = _truncated_cait("cait_m48_448", 41, random=True)
        small = _truncated_cait("cait_s24_224", 21, random=True)
        image = torch.empty(1, 3, 448, 448)
        with FlopCounterMode(display=False) as features:
            _cait_map(large, image)
            _cait_map(small, _shrink(image, 224))
    flow = UShapedFlow(MCAIT, 4, [3, 1], 0)
    maps = [torch.randn(1, *shape) for shape in MCAIT]
    with FlopCounterMode(display=False) as training:
        negative_log_likelihood(*flow(maps)).mean().backward()
    backbone, step = features.get_total_flops() / 1e9, training.get_total_flops() / 1e9
    print(
        f"training step per image, MS-CaiT: features {backbone:.1f} GFLOP, flow forward and "
        f"backward {step:.1f} GFLOP; cached features save {(backbone + step) / step:.1f}x"
    )


PARTS = {"nfa": bench_nfa, "flow": bench_flow, "cache": bench_cache, "flops": bench_flops}


def main() -> None:
    """Run the parts named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    chosen = parser.parse_args().parts or list(PARTS)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads")
    for part in chosen:
        torch.set_num_threads(threads)
        PARTS[part]()


if __name__ == "__main__":
    main()
