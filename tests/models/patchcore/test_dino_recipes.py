"""AnomalyDINO and SuperAD: what their files say, and a run of each without weights."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from src.commands.export import export_run
from src.composing import compose_checked
from src.experiment import run_experiment

MASKED = {"capsule", "hazelnut", "pill", "screw", "toothbrush"}
MVTEC = ["bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill",
         "screw", "tile", "toothbrush", "transistor", "wood", "zipper"]  # fmt: skip


def of(category, *words, data="mvtec", model="anomaly_dino"):
    return compose_checked(
        "run", [f"model={model}", f"data={data}", f"data.category={category}", *words]
    )


def test_parts_with_a_background_are_masked_and_references_turned_as_published():
    agnostic, informed = of("bottle"), of("bottle", "model.recipe.preset=informed")
    for category in MVTEC:
        agnostic.data.category = informed.data.category = category
        assert agnostic.model.foreground == (10 if category in MASKED else None)
        assert informed.model.foreground == agnostic.model.foreground
        assert agnostic.model.rotations == 8
        assert informed.model.rotations == (8 if category in ("hazelnut", "screw") else [])


def test_all_of_visa_is_masked():
    assert of("pcb1", data="visa").model.foreground == 10


@pytest.mark.parametrize("side", [448, 672])
def test_a_size_is_the_smaller_side_and_a_folder_sees_whole_patches(side, tmp_path):
    words = ["model=anomaly_dino", f"model.recipe.side={side}"]
    assert compose_checked("run", [*words, "data=mvtec"]).transform.resize == side
    folder = compose_checked("run", [*words, "data=folder", f"data.root={tmp_path}"])
    assert folder.data.view.side == side
    assert folder.data.view.step == 14


def test_super_ad_takes_the_quarters_of_each_backbone():
    def stages(backbone):
        return list(of("bottle", f"backbone={backbone}", model="super_ad").model.stages)

    assert stages("dinov2_large") == stages("dinov3_large") == [6, 12, 18, 24]
    assert stages("dinov2_base") == [3, 6, 9, 12]
    assert stages("dinov3_huge_plus") == [8, 16, 24, 32]
    assert stages("efficientnet_lite0") == [2, 3]


@pytest.mark.parametrize(
    ("model", "form", "words"),
    [
        ("anomaly_dino", "onnx", ["model.foreground=0.5", "model.rotations=2"]),
        ("super_ad", "torch",
         ["backbone.layers=[blocks.0+norm,blocks.1+norm]", "model.references=0.5"]),
    ],
)  # fmt: skip
def test_a_run_is_finished_and_exported(
    model, form, words, app_config, tmp_path, drawn_data, monkeypatch, caplog
):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2.lvd142m", depth=2)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    found = run_experiment(
        app_config(
            "run", "data=synthetic", f"model={model}", "backbone=dinov2_small",
            "backbone.layers=[blocks.1+norm]", f"backbone.weights={tmp_path / 'vit.safetensors'}",
            "data.synthetic.size=64", "data.synthetic.train=8", "data.synthetic.test_normal=4",
            "data.synthetic.test_defective=6", "transform.resize=56", "evaluation.size=64",
            "evaluation.bootstrap=0", "evaluation.latency_images=2", "hardware.num_workers=0",
            f"runs_dir={tmp_path / 'runs'}", "report.enabled=false", "hardware=cpu", *words,
        )
    )  # fmt: skip
    assert 0.0 <= found.metrics["test/image_auroc"] <= 1.0
    assert "have not been reproduced yet with this code." in caplog.text
    parity = export_run(
        app_config("export", f"run={found.run.directory}", f"out={tmp_path / 'detector'}",
                   f"format={form}", "parity.images=4", "parity.repeats=1")
    )  # fmt: skip
    assert parity.flips == 0
