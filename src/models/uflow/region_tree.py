"""The most significant regions of a map: one pass over its component tree, linear in pixels.

U-Flow (Tailanian, Pardo, Musé, JMIV 2024), Procedures 1 and 2: take the tree of connected upper
level sets {e >= level}, 4-connected, give each region a log-probability, and alternate pruning
of branches with merging of bifurcations until nothing changes. The official code
(mtailanian/uflow, AGPL-3.0, nothing copied) stores the pixels of every region and walks a graph
library; the fixpoint of its alternation is the single bottom-up pass below, which needs only the
area of each region. Checked against a brute-force twin in tests/reference_uflow.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import max_tree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class RegionTree(NamedTuple):
    """Component tree of a map; node 0 is the whole map, parents come before children."""

    parent: list[int]  # (n,) node; the root's is 0
    children: list[int]  # (n,) how many
    level: Floats  # (n,) lowest value inside the region
    area: Ints  # (n,) pixels of the region
    node: Ints  # (h, w) the smallest region that holds the pixel


def region_tree(values: NDArray) -> RegionTree:
    """Component tree of the upper level sets of `values` (h, w), finite, 4-connected."""
    h, w = values.shape
    e = np.asarray(values, dtype=np.float64)
    if min(h, w) <= 2:
        return _drop_frame(region_tree(np.pad(e, 1, constant_values=e.min() - 1.0)), (h, w))
    above, order = max_tree(e, connectivity=1)  # type: ignore[no-untyped-call]
    above, e = above.ravel(), e.ravel()
    # skimage: a pixel whose parent has the same level belongs to the parent's region.
    head = e[above] != e
    head[order[0]] = True
    heads = order[head[order]]  # one pixel a region, parents first
    number = np.empty(e.size, dtype=np.int64)
    number[heads] = np.arange(len(heads))
    node = number[np.where(head, np.arange(e.size), above)]
    parent = number[above[heads]]
    children = np.bincount(parent[1:], minlength=len(heads))
    area = _accumulate(np.bincount(node, minlength=len(heads)), parent)
    return RegionTree(
        parent.tolist(), children.tolist(), e[heads], area, node.reshape(h, w).astype(np.int64)
    )


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


def _accumulate(own: Ints, parent: Ints) -> Ints:
    """Sums over subtrees: parents come before children."""
    total, above = own.tolist(), parent.tolist()
    for node in range(len(total) - 1, 0, -1):
        total[above[node]] += total[node]
    return np.asarray(total, dtype=np.int64)


def _drop_frame(tree: RegionTree, shape: tuple[int, int]) -> RegionTree:
    """The tree inside a one-pixel frame that lies below every value (skimage needs height > 2)."""
    h, w = shape
    parent = [max(0, above - 1) for above in tree.parent[1:]]
    return RegionTree(
        parent,
        tree.children[1:],
        tree.level[1:],
        tree.area[1:],
        tree.node[1 : h + 1, 1 : w + 1] - 1,
    )
