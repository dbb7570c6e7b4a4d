"""Checkpoints in the authors' layout are read, converted and refused correctly."""

from __future__ import annotations

import argparse

import pytest
import torch

from src.errors import SavedModelError
from src.models.uflow.flow import UShapedFlow
from src.models.uflow.published import convert_published, read_published
from tests.reference_uflow import freia_graph, perturb

SHAPES = [(12, 8, 8), (16, 4, 4)]


def authors_checkpoint(path):
    """What the authors' Lightning module saves, with a toy backbone."""
    graph = perturb(freia_graph(SHAPES, flow_steps=4))
    state = {f"model.flow.{key}": value for key, value in graph.state_dict().items()}
    state |= {
        "model.feature_extractor.extractor1.patch_embed.proj.weight": torch.zeros(3),
        "model.feature_extractor.extractor2.norm.weight": torch.zeros(3),
        "model.feature_extractor.feature_normalizations.0.weight": torch.ones(12, 8, 8),
        "model.feature_extractor.feature_normalizations.0.bias": torch.zeros(12, 8, 8),
    }
    torch.save(
        {
            "epoch": 37,
            "state_dict": state,
            "hyper_parameters": {"args": argparse.Namespace(cat="carpet")},
            "optimizer_states": [{"state": {}, "param_groups": []}],
        },
        path,
    )
    return graph


def test_a_checkpoint_of_the_authors_gives_their_latents(tmp_path):
    theirs = authors_checkpoint(tmp_path / "carpet.ckpt")
    tensors = read_published(tmp_path / "carpet.ckpt")
    flow = UShapedFlow(SHAPES, 4, [3, 1], seed=5)
    own = {k.removeprefix("flow."): v for k, v in tensors.items() if k.startswith("flow.")}
    flow.load_state_dict(own)  # strict: every tensor is there
    features = [torch.randn(2, *shape) for shape in SHAPES]
    for ours, expected in zip(flow(features)[0], theirs(features)[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_backbones_stay_behind_and_layer_norms_come_along(tmp_path):
    authors_checkpoint(tmp_path / "a.ckpt")
    tensors = read_published(tmp_path / "a.ckpt")
    assert not any("extractor" in key for key in tensors)
    assert tensors["norm.layers.0.weight"].shape == (12, 8, 8)


def test_foreign_and_broken_files_are_refused(tmp_path):
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, tmp_path / "foreign.ckpt")
    with pytest.raises(SavedModelError, match="not a checkpoint of U-Flow"):
        read_published(tmp_path / "foreign.ckpt")
    (tmp_path / "page.ckpt").write_text("<html>quota</html>")
    with pytest.raises(SavedModelError, match="read safely"):
        read_published(tmp_path / "page.ckpt")
    authors_checkpoint(tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(SavedModelError, match="read safely"):
        read_published(tmp_path / "cut.ckpt")


class _Runs:
    def __reduce__(self):
        return (print, ("code of the file ran",))


def test_code_in_a_checkpoint_is_never_run(tmp_path, capsys):
    torch.save({"state_dict": {}, "payload": _Runs()}, tmp_path / "evil.ckpt")
    with pytest.raises(SavedModelError, match="read safely"):
        read_published(tmp_path / "evil.ckpt")
    assert "ran" not in capsys.readouterr().out


def test_soft_permutations_are_refused():
    soft = torch.linalg.qr(torch.randn(4, 4))[0][:, :, None, None]
    with pytest.raises(SavedModelError, match="hard permutation"):
        convert_published({"flow.module_list.0.w_perm": soft})
