"""The most significant regions of a map: one pass over its component tree, linear in pixels.

U-Flow (JMIV 2024), Procedures 1 and 2: take the tree of connected upper level sets {e >= level},
4-connected, give each region a log-probability, and alternate pruning of branches with merging of
bifurcations until nothing changes. The official code (nothing copied) stores the pixels of every
region; the fixpoint of its alternation is the single bottom-up pass below, which needs only areas.
Checked against a brute-force twin in tests/reference_uflow.py.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class RegionTree(NamedTuple):
    """Component tree of a map; node 0 is the whole map, parents come before children."""

    parent: list[int]  # (n,) node; the root's is 0
    children: list[int]  # (n,) how many
    level: Floats  # (n,) lowest value inside the region
    area: Ints  # (n,) pixels of the region
    node: Ints  # (h, w) the smallest region that holds the pixel


def region_tree(values: NDArray, ground: float = -math.inf) -> RegionTree:
    """Component tree of the upper level sets of `values` (h, w), finite, 4-connected.

    Values up to `ground` count as equal: they form the root, which is cheaper than a tree.
    """
    h, w = values.shape
    e = np.full((h + 2, w + 2), -np.inf)  # a frame spares the question of the border
    e[1:-1, 1:-1] = np.maximum(values, ground)
    e = e.ravel()
    raised = np.flatnonzero(e > ground)
    order = raised[np.argsort(-e[raised], kind="stable")]
    above = np.asarray(_union(order.tolist(), e.size, w + 2))  # (pixels,) -1 at roots
    ascending = order[::-1]
    # Of each pixel, the one that stands for its region: the topmost that its parents lead to
    # without a change of level.
    head = np.arange(e.size)
    linked = ascending[above[ascending] >= 0]
    tied = linked[e[above[linked]] == e[linked]]
    head[tied] = above[tied]
    while len(tied) and not np.array_equal(head[head], head):
        head = head[head]
    is_head = head[ascending] == ascending
    heads = ascending[is_head]  # one pixel a region, parents first
    grounded = int(len(raised) < h * w)
    number = np.zeros(e.size, dtype=np.int64)
    number[heads] = np.arange(len(heads)) + grounded
    node = number[head].reshape(h + 2, w + 2)[1:-1, 1:-1]
    parent = np.zeros(len(heads) + grounded, dtype=np.int64)
    parent[grounded:] = np.where(above[heads] < 0, 0, number[head[above[heads]]])
    level = np.concatenate([[ground] * grounded, e[heads]])
    children = np.bincount(parent[1:], minlength=len(parent))
    area, parents = np.bincount(node.ravel(), minlength=len(parent)).tolist(), parent.tolist()
    for child in range(len(area) - 1, 0, -1):  # sums over subtrees: children come later
        area[parents[child]] += area[child]
    return RegionTree(parents, children.tolist(), level, np.asarray(area, dtype=np.int64), node)


def _union(order: list[int], size: int, row: int) -> list[int]:
    """Parent pixel of each pixel of `order` (highest first) in a framed map, -1 for roots.

    Union-find with path halving (Najman and Couprie, 2006): a pixel becomes the parent of the
    regions that its neighbours belong to so far. skimage's max_tree gives the same tree; it takes
    five to ten times as long for maps of 14 to 64 pixels, being made for large images.
    """
    above = [-1] * size
    link = [-1] * size  # towards the top of the region so far; -1: not seen yet, or frame
    for p in order:
        link[p] = p
        for q in (p - 1, p + 1, p - row, p + row):
            top = link[q]
            if top < 0:
                continue
            here, further = q, link[top]
            while further != top:
                link[here] = further
                here, top = top, further
                further = link[top]
            if top != p:
                above[top] = link[top] = link[q] = p
    return above


def significant_regions(tree: RegionTree, log_probability: Floats) -> Floats:
    """Log-probability (h, w) of the region that explains each pixel best; NaN where none does.

    `log_probability` (n,): of each region of the tree. A region survives when it is the least
    probable of its branch, and its ancestors above a bifurcation are not less probable than
    every branch below them.
    """
    best = _surviving(tree, log_probability.tolist())
    painted = np.full(len(tree.parent), np.nan)
    painted[best] = log_probability[best]
    values = painted.tolist()
    for node, above in enumerate(tree.parent):  # parents first: regions inherit
        if values[node] != values[node]:
            values[node] = values[above]
    return np.asarray(values)[tree.node]


def _surviving(tree: RegionTree, log_p: list[float]) -> Ints:
    """Nodes that remain when pruning and merging have come to rest.

    A subtree collapses when one of its regions, its winner, can stand for it: a leaf's is the
    leaf; with one child it is the node if less probable than the child's winner, else that
    winner (ties: the deeper); a bifurcation wins itself if no child's winner is less probable.
    The winners of the largest collapsing subtrees survive.
    """
    n = len(log_p)
    winner = [-1] * n  # of a collapsing node; -1: does not collapse
    lowest = [math.inf] * n  # log-probability of the best winner among the children
    candidate = [-1] * n  # that winner
    firm = [True] * n  # every child collapses
    for node in range(n - 1, -1, -1):  # children first
        above, count, value = tree.parent[node], tree.children[node], log_p[node]
        if not firm[node]:
            firm[above] = False
            continue
        if count == 0 or value < lowest[node] or (count > 1 and value == lowest[node]):
            winner[node] = node
        elif count == 1:
            winner[node], value = candidate[node], lowest[node]
        else:
            firm[above] = False
            continue
        if value < lowest[above]:
            lowest[above], candidate[above] = value, winner[node]
    won = np.asarray(winner)
    outermost = won >= 0
    outermost[1:] &= won[np.asarray(tree.parent[1:], dtype=np.int64)] < 0
    return won[outermost]
