"""Memory banks saved by the official code: a faiss index beside pickled parameters.

Format: amazon-science/patchcore-inspection (Apache-2.0), `nnscorer_search_index.faiss` and
`patchcore_params.pkl`, each with a prefix `Ensemble-i-n_` in an ensemble. Pickles can run code, so
this one is read by an unpickler that builds plain values only.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.errors import SavedModelError
from src.models.patchcore.bank import import_faiss
from src.models.patchcore.module import PatchCore

_INDEX, _PARAMETERS = "nnscorer_search_index.faiss", "patchcore_params.pkl"


class OfficialBank(NamedTuple):
    """What the official code saves of a fitted model."""

    rows: Tensor  # (M, D) float32
    parameters: dict[str, Any]  # backbone.name, layers_to_extract_from, patchsize, ...


def read_official(folder: Path, prefix: str) -> OfficialBank:
    """Bank and parameters from the official files `<prefix>...` of a folder.

    Raises:
        SavedModelError: a file is missing, is not what its name says, or holds objects.
        ConfigError: faiss is not installed.
    """
    index, parameters = folder / f"{prefix}{_INDEX}", folder / f"{prefix}{_PARAMETERS}"
    for path in (index, parameters):
        if not path.is_file():
            found = sorted(p.name for p in folder.glob(f"*{path.suffix}"))
            raise SavedModelError(
                f"{path} does not exist.",
                found=", ".join(found) or f"no {path.suffix} file in {folder}",
                do="give the folder of one category, and the prefix of an ensemble's member",
            )
    try:
        stored = import_faiss().read_index(str(index))
        rows = torch.from_numpy(stored.reconstruct_n(0, stored.ntotal))
    except RuntimeError as error:
        raise SavedModelError(
            f"{index} is not a readable flat faiss index.",
            found=str(error).splitlines()[-1],
            do="fetch it again; files of 130 bytes are Git LFS pointers (`git lfs pull`)",
        ) from error
    return OfficialBank(rows, _read_parameters(parameters))


def take_official(model: PatchCore, bank: OfficialBank) -> None:
    """Put an official bank into a PatchCore built for it; sources are unknown (-1).

    Raises:
        SavedModelError: the model's patch vectors have another size or another neighbourhood.
    """
    options, embedder = model.memory.options, model.memory.embedder
    wanted = {
        "target_embed_dimension": embedder.dim,
        "pretrain_embed_dimension": options.pretrain_dim,
        "patchsize": options.patch_size,
    }
    saved = {key: bank.parameters.get(key, value) for key, value in wanted.items()}
    if options.embedding != "official" or saved != wanted or bank.rows.shape[1] != embedder.dim:
        raise SavedModelError(
            "The official bank was made with other settings.",
            found=f"{saved}, {bank.rows.shape[1]} values a row; the model has {wanted}, "
            f"embedding {options.embedding}",
            do="set model.embedding=official, model.target_dim, model.pretrain_dim and "
            "model.patch_size as saved; released banks use wide_resnet50_2 or the ensemble's three",
        )
    origin = torch.full((len(bank.rows), 3), -1, dtype=torch.int32)
    model.memory.bank.fill(bank.rows.to(model.device), origin.to(model.device))


def _read_parameters(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            values = _PlainUnpickler(stream).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise SavedModelError(
            f"{path} is not a file of plain parameters.",
            found=str(error),
            do="use the file that the official code wrote; nothing in it was executed",
        ) from error
    if not isinstance(values, dict):
        raise SavedModelError(
            f"{path} holds no parameters.",
            found=type(values).__name__,
            do="use the file that the official code wrote",
        )
    return values


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings, lists, tuples and dictionaries; never a class or a function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
