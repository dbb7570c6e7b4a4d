"""Slow, obviously correct twins of U-Flow's parts; the authors' graph made of FrEIA's blocks."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch
from FrEIA.framework import GraphINN, InputNode, Node, OutputNode
from FrEIA.modules import AllInOneBlock, Concat, IRevNetUpsampling, Split
from torch import nn

# --- flow: what the official configuration builds from FrEIA 0.2 -------------------------------


def freia_block(shape, kernel_size):
    """FrEIA's own block with the paper's arguments."""

    def subnet(channels_in, channels_out):
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_in, kernel_size, padding="same"),
            nn.ReLU(),
            nn.Conv2d(channels_in, channels_out, kernel_size, padding="same"),
        )

    return AllInOneBlock(
        [shape], subnet_constructor=subnet, affine_clamping=2.0, permute_soft=False
    )


def freia_graph(shapes, flow_steps):
    """GraphINN of the U shape with AllInOneBlock and IRevNetUpsampling; shapes finest first."""
    inputs = [InputNode(*shape, name=f"in_{i}") for i, shape in enumerate(shapes)]
    nodes, outputs, rising = list(inputs), [], None
    for scale in range(len(shapes) - 1, -1, -1):
        last = inputs[scale]
        if rising is not None:
            up = Node(rising, IRevNetUpsampling, {}, name=f"up_{scale}")
            last = Node([inputs[scale].out0, up.out0], Concat, {}, name=f"cat_{scale}")
            nodes += [up, last]
        for step in range(flow_steps):
            kernel = 3 if step % 2 == 0 else 1
            arguments = {
                "subnet_constructor": _subnet_with(kernel),
                "affine_clamping": 2.0,
                "permute_soft": False,
            }
            last = Node(last, AllInOneBlock, arguments, name=f"flow_{scale}_{step}")
            nodes.append(last)
        latent = last
        if scale > 0:
            channels = last.output_dims[0][0]
            first = channels // 8 * 4
            split = Node(last, Split, {"section_sizes": [first, channels - first]})
            nodes.append(split)
            rising, latent = split.out0, split.out1
        outputs.insert(0, OutputNode(latent))
    return GraphINN(nodes + outputs, force_tuple_output=True)


def _subnet_with(kernel):
    def subnet(channels_in, channels_out):
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_in, kernel, padding="same"),
            nn.ReLU(),
            nn.Conv2d(channels_in, channels_out, kernel, padding="same"),
        )

    return subnet


def perturb(module, seed=0, size=0.1):
    """Move every trainable parameter away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += size * noise.to(parameter.dtype)
    return module


# --- NFA: explicit regions, explicit procedures ------------------------------------------------


def flood_regions(values):
    """Every 4-connected component of every upper level set, as (level, frozenset of pixels)."""
    h, w = values.shape
    found = {}
    for level in sorted(set(values.ravel().tolist())):
        above = values >= level
        seen = np.zeros_like(above)
        for start in zip(*np.nonzero(above), strict=True):
            if seen[start]:
                continue
            region, queue = set(), deque([start])
            seen[start] = True
            while queue:
                y, x = queue.popleft()
                region.add((y, x))
                for p in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                    if 0 <= p[0] < h and 0 <= p[1] < w and above[p] and not seen[p]:
                        seen[p] = True
                        queue.append(p)
            pixels = frozenset(region)
            found[pixels] = max(level, found.get(pixels, -math.inf))  # same set, higher level
    return [(level, pixels) for pixels, level in found.items()]


def significant_by_procedures(values, log_probability):
    """Procedures 1 and 2 of the paper, alternated on an explicit tree until nothing changes.

    `log_probability(level, area)`; returns the map of the surviving regions' values, NaN else.
    """
    regions = flood_regions(values)
    order = sorted(range(len(regions)), key=lambda n: len(regions[n][1]))
    log_p = [log_probability(level, len(pixels)) for level, pixels in regions]
    parent = {}
    for n in order:  # the smallest strictly larger region that contains it
        larger = [m for m in order if regions[n][1] < regions[m][1]]
        parent[n] = min(larger, key=lambda m: len(regions[m][1])) if larger else None
    alive = set(parent)

    def children(n):
        return [m for m in alive if parent[m] == n]

    def remove(n):
        for child in children(n):
            parent[child] = parent[n]
        alive.discard(n)

    def prune():
        for leaf in [n for n in alive if not children(n)]:
            branch, node = [leaf], parent[leaf]
            while node is not None and len(children(node)) == 1:
                branch.append(node)
                node = parent[node]
            keep = min(branch, key=lambda n: (log_p[n], branch.index(n)))  # ties: the deepest
            for n in branch:
                if n != keep:
                    remove(n)

    def merge():
        merged = False
        for n in list(alive):
            below = children(n)
            leaves = len(below) >= 2 and all(not children(m) for m in below)
            if leaves and log_p[n] <= min(log_p[m] for m in below):
                alive.difference_update(below)
                merged = True
        return merged

    prune()
    while merge():
        prune()
    result = np.full(values.shape, np.nan)
    for n in alive:
        if not children(n):
            for pixel in regions[n][1]:
                result[pixel] = log_p[n]
    return result


def chernoff(level, area, channels, clamp):
    """log10 of the bound for a region, one number at a time."""
    if level <= 0:
        return 0.0 if clamp else -math.inf
    if clamp and level <= 1:
        return 0.0
    return -area * channels / 2 * (level - 1 - math.log(level)) / math.log(10)


def count_polyominoes(cells):
    """Fixed polyominoes of 1..cells cells, by growing sets of normalised figures."""
    figures, counts = {frozenset({(0, 0)})}, [1]
    for _ in range(cells - 1):
        grown = set()
        for figure in figures:
            for y, x in figure:
                for p in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                    if p not in figure:
                        bigger = {*figure, p}
                        y0, x0 = min(q[0] for q in bigger), min(q[1] for q in bigger)
                        grown.add(frozenset((q[0] - y0, q[1] - x0) for q in bigger))
        figures = grown
        counts.append(len(figures))
    return counts
