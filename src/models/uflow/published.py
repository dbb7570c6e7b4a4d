"""The authors' published checkpoints in this repository's layout.

Layout of the checkpoints (Lightning, one per category and metric): `flow.module_list.{i}.` with i
counting the nodes of FrEIA's graph from the coarsest stage on, which is the order here too; each
block holds `global_scale`, `global_offset`, `subnet.{0,2}.{weight,bias}` and its permutation as
two one-hot C x C matrices. ResNets add `feature_extractor.feature_normalizations.{i}`. The frozen
backbones, 1.6 GB of each file, are left behind.
"""

import argparse
import pathlib
import pickle
import re
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.errors import SavedModelError

_FLOW = re.compile(r"^(?:model\.)?flow\.module_list\.(\d+)\.(.+)$")
_NORM = re.compile(r"^(?:model\.)?feature_extractor\.feature_normalizations\.(\d+)\.(.+)$")
_DERIVED = ("w_perm_inv", "downsample_kernel", "last_jac")  # follow from the rest
#: Harmless containers that Lightning writes beside the tensors.
_CONTAINERS: list[Any] = [argparse.Namespace, OrderedDict, defaultdict, dict, pathlib.PosixPath]


def read_published(path: Path) -> dict[str, Tensor]:
    """Flow (and norm) tensors of a published checkpoint, under the names of `UFlow`.

    The file cannot run code. SavedModelError when it is unreadable, or not a U-Flow checkpoint.
    """
    try:
        with torch.serialization.safe_globals(_CONTAINERS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise SavedModelError(
            f"{path} is not a checkpoint that can be read safely.",
            found=str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__,
            do="download it again with overwrite=true; a file that ends early is the usual cause",
        ) from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    return convert_published(state)


def convert_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict -> tensors of `UFlow.trained_tensors`, all but `norm.measured`."""
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        if found := _FLOW.match(key):
            node, name = found.groups()
            if name == "w_perm":
                converted[f"flow.graph.module_list.{node}.permutation"] = _order(value, key)
            elif name not in _DERIVED:
                converted[f"flow.graph.module_list.{node}.{name}"] = value
        elif found := _NORM.match(key):
            scale, name = found.groups()
            converted[f"norm.layers.{scale}.{name}"] = value
    if not any(key.endswith("permutation") for key in converted):
        raise SavedModelError(
            "This is not a checkpoint of U-Flow.",
            found=f"{len(state)} tensors, none called flow.module_list.<i>.w_perm",
            do="give a checkpoint of mtailanian/uflow",
        )
    return converted


def _order(one_hot: Tensor, key: str) -> Tensor:
    """Index vector of a permutation kernel (C, C, 1, 1)."""
    matrix = one_hot[:, :, 0, 0]
    order = matrix.argmax(dim=1)
    expected = torch.eye(len(order), dtype=matrix.dtype)[order]
    if not torch.equal(matrix, expected) or len(set(order.tolist())) != len(order):
        raise SavedModelError(
            f"{key} is not a hard permutation.",
            found="a matrix with other entries than one 1 per row and column",
            do="only checkpoints of the official configuration (permute_soft=False) are supported",
        )
    return order
