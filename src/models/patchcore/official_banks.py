"""Memory banks saved by the official code: a faiss index beside pickled parameters.

Format: amazon-science/patchcore-inspection (Apache-2.0), `nnscorer_search_index.faiss` and
`patchcore_params.pkl`, each with a prefix `Ensemble-i-n_` in an ensemble. Nobody knows which
training image a row stems from, so such a model cannot hold its own images out.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from src.errors import ConfigError, SavedModelError
from src.files import atomic
from src.models.base import read_given
from src.models.patchcore.bank import import_faiss
from src.models.patchcore.options import Embedding, Normalisation

if TYPE_CHECKING:
    from src.models.patchcore.module import PatchCore

_INDEX, _PARAMETERS = "nnscorer_search_index.faiss", "patchcore_params.pkl"
#: Official names of the options that a bank depends on, and ours.
_SETTINGS = {
    "target_embed_dimension": "target_dim",
    "pretrain_embed_dimension": "pretrain_dim",
    "patchsize": "patch_size",
}


def convert_official(folder: Path, target: Path) -> Path:
    """Write the banks of an official folder, all members of an ensemble, as safetensors."""
    found = sorted(path.name.removesuffix(_INDEX) for path in folder.glob(f"*{_INDEX}"))
    members = [read_official(folder, prefix) for prefix in found or [""]]
    settings = [{key: facts.get(key) for key in _SETTINGS} for _, facts in members]
    with atomic(target) as partial:
        tensors = {f"member{i}": rows for i, (rows, _) in enumerate(members)}
        save_file(tensors, partial, metadata={"settings": json.dumps(settings)})
    return target


def read_official(folder: Path, prefix: str) -> tuple[Tensor, dict[str, Any]]:
    """Rows (M, D) float32 and parameters from the official files `<prefix>...` of a folder."""
    index, parameters = folder / f"{prefix}{_INDEX}", folder / f"{prefix}{_PARAMETERS}"
    faiss = import_faiss()
    try:
        stored = faiss.read_index(str(index))
        rows = torch.from_numpy(stored.reconstruct_n(0, stored.ntotal))
        with parameters.open("rb") as stream:
            return rows, dict(_PlainUnpickler(stream).load())
    except Exception as error:  # missing, damaged, foreign: faiss and pickle raise many kinds
        raise SavedModelError(
            f"{index} and {parameters.name} are not a bank and plain parameters.",
            found=f"{type(error).__name__}: {error}".splitlines()[-1],
            do="give the folder of one category as the official code wrote it, with `git lfs pull` "
            "where files have 130 bytes; nothing in them was executed",
        ) from error


def take_official(model: PatchCore, path: str) -> None:
    """Put converted banks into a PatchCore built for them; sources are unknown (-1)."""
    tensors, remarks = read_given(path, "patchcore files=...")
    banks = [tensors[name] for name in sorted(tensors)]
    settings = json.loads(remarks.get("settings", "[]"))
    options, count = model.options, len(model.memories)
    ours = {key: getattr(options, name) for key, name in _SETTINGS.items()}
    known = [{key: value for key, value in saved.items() if value} for saved in settings]
    widths = [bank.shape[1] for bank in banks]
    fits = options.embedding == Embedding.official and widths == [options.target_dim] * count
    if not fits or any(ours != ours | saved for saved in known):
        raise SavedModelError(
            "The official banks were made with other settings.",
            found=f"{known}, {widths} values a row; the model has {ours}, "
            f"embedding {options.embedding}, {count} backbones",
            do="set model.embedding=official, model.target_dim, model.pretrain_dim and "
            "model.patch_size as saved; released banks use wide_resnet50_2 or the ensemble's three",
        )
    if count > 1 and options.normalisation != Normalisation.test_set:
        raise ConfigError(
            "Official banks give no held-out scores to scale the members of an ensemble with.",
            found=f"model.normalisation={options.normalisation}",
            do="set model.normalisation=test_set threshold=f1_oracle, the official protocol",
        )
    for memory, rows in zip(model.memories, banks, strict=True):
        memory.bank.fill(rows, torch.full((len(rows), 3), -1))


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings, lists, tuples and dictionaries; never a class or a function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
