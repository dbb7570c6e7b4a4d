"""Banks of the official code are read without running what their pickle says."""

from __future__ import annotations

import os
import pickle

import faiss
import pytest
import torch

from src.commands.fetch_models import fetch_published
from src.errors import ConfigError, SavedModelError
from src.models.patchcore.official_banks import read_official
from tests.conftest import compose_app
from tests.models.patchcore.stand_ins import SIZE, TwoMaps, build, fitted

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


def through_the_command(folder, *overrides):
    cfg = compose_app("fetch_models", "method=patchcore", f"files={folder}", *overrides)
    (path,) = fetch_published(cfg)
    return str(path)


def official(**changes):
    return {"embedding": "official", "squared": True} | changes


def test_official_bank_scores_like_its_own_index(tmp_path):
    rows = write(tmp_path)
    path = through_the_command(tmp_path, f"folder={tmp_path}/out")
    model = build(weights=path, **official())
    image = torch.randn(2, 3, *SIZE)
    patches = model.patches(image)[0].flatten(0, 2)
    index = faiss.IndexFlatL2(16)
    index.add(rows.numpy())
    expected = torch.from_numpy(index.search(patches.detach().numpy(), 1)[0]).view(2, -1).amax(1)
    torch.testing.assert_close(model(image).score, expected)
    assert (model.nearest_patches(image[0]).image == -1).all()
    model.after_fit([])
    assert model.held_out_scores() is None


def test_members_of_an_official_ensemble_come_in_their_order(tmp_path):
    rows = [write(tmp_path, prefix=f"Ensemble-{i}-2_") for i in (1, 2)]
    path = through_the_command(tmp_path, f"folder={tmp_path}/out")
    given = official(weights=path, normalisation="test_set")
    model = build(TwoMaps(), TwoMaps(), **given)
    for memory, expected in zip(model.memories, rows, strict=True):
        torch.testing.assert_close(memory.bank.vectors(), expected)
    with pytest.raises(ConfigError, match="normalisation=test_set"):
        build(TwoMaps(), TwoMaps(), **(given | {"normalisation": "held_out"}))


def test_a_given_bank_is_not_fitted_over(tmp_path):
    write(tmp_path)
    path = through_the_command(tmp_path, f"folder={tmp_path}/out")
    with pytest.raises(ConfigError, match="max_epochs=0"):
        fitted(weights=path, **official())


def test_the_command_asks_for_the_folder():
    with pytest.raises(ConfigError, match="git lfs"):
        fetch_published(compose_app("fetch_models", "method=patchcore"))


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
    with pytest.raises(SavedModelError, match="plain parameters"):
        read_official(tmp_path, "")


def test_pointer_files_and_missing_files_are_explained(tmp_path):
    with pytest.raises(SavedModelError, match="No such file"):
        read_official(tmp_path, "")
    write(tmp_path)
    (tmp_path / "nnscorer_search_index.faiss").write_text("version https://git-lfs.github.com")
    with pytest.raises(SavedModelError, match="git lfs pull"):
        read_official(tmp_path, "")


def test_a_bank_of_another_size_is_refused(tmp_path):
    write(tmp_path, PARAMETERS | {"target_embed_dimension": 8}, dim=8)
    path = through_the_command(tmp_path, f"folder={tmp_path}/out")
    with pytest.raises(SavedModelError, match="other settings"):
        build(weights=path, **official())
    with pytest.raises(SavedModelError, match="cannot be read"):
        build(weights=str(tmp_path / "none"), **official())
