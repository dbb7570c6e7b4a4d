"""Banks of the official code are read without running what their pickle says."""

from __future__ import annotations

import os
import pickle

import faiss
import pytest
import torch

from src.errors import SavedModelError
from src.models.patchcore.official_banks import read_official, take_official
from tests.models.patchcore.stand_ins import SIZE, build

PARAMETERS = {
    "backbone.name": "wideresnet50",
    "layers_to_extract_from": ["layer2", "layer3"],
    "input_shape": (3, 224, 224),
    "pretrain_embed_dimension": 16,
    "target_embed_dimension": 16,
    "patchsize": 3,
    "patchstride": 1,
    "anomaly_scorer_num_nn": 5,
}


def write(folder, parameters=PARAMETERS, dim=16, prefix=""):
    index = faiss.IndexFlatL2(dim)
    rows = torch.randn(50, dim)
    index.add(rows.numpy())
    faiss.write_index(index, str(folder / f"{prefix}nnscorer_search_index.faiss"))
    (folder / f"{prefix}patchcore_params.pkl").write_bytes(pickle.dumps(parameters))
    return rows


def test_official_bank_scores_like_its_own_index(tmp_path):
    rows = write(tmp_path, prefix="Ensemble-1-3_")
    bank = read_official(tmp_path, "Ensemble-1-3_")
    assert torch.equal(bank.rows, rows)
    assert bank.parameters["anomaly_scorer_num_nn"] == 5
    model = build(embedding="official", squared=True)
    take_official(model, bank)
    image = torch.randn(2, 3, *SIZE)
    patches = model.patches(image)[0].flatten(0, 2)
    index = faiss.IndexFlatL2(16)
    index.add(rows.numpy())
    expected = torch.from_numpy(index.search(patches.detach().numpy(), 1)[0]).view(2, -1).amax(1)
    torch.testing.assert_close(model(image).score, expected)
    assert (model.nearest_patches(image[0]).image == -1).all()


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"patchsize": Evil()})
    with pytest.raises(SavedModelError, match=r"asks for (posix|nt)\.system"):
        read_official(tmp_path, "")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"not a pickle"])
def test_broken_parameters_are_named(tmp_path, content):
    write(tmp_path)
    (tmp_path / "patchcore_params.pkl").write_bytes(content)
    with pytest.raises(SavedModelError, match="parameters"):
        read_official(tmp_path, "")


def test_pointer_files_and_missing_files_are_explained(tmp_path):
    with pytest.raises(SavedModelError, match="does not exist"):
        read_official(tmp_path, "")
    write(tmp_path)
    (tmp_path / "nnscorer_search_index.faiss").write_text("version https://git-lfs.github.com")
    with pytest.raises(SavedModelError, match="git lfs pull"):
        read_official(tmp_path, "")


def test_a_bank_of_another_size_is_refused(tmp_path):
    write(tmp_path, PARAMETERS | {"target_embed_dimension": 8}, dim=8)
    with pytest.raises(SavedModelError, match="other settings"):
        take_official(build(embedding="official"), read_official(tmp_path, ""))
