"""What pixel metrics cover is said and chosen: real runs on drawn defects of known places."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from src.commands.evaluate import evaluate_run
from src.experiment import run_experiment
from src.reporting.run_table import print_result
from src.saved_run import SavedRun

#: Rows and columns of each defect in a 128 px image; the crop sees 32 to 96.
DEFECTS = {"seen": ((48, 80), (48, 80)), "half": ((16, 48), (48, 80)), "corner": ((0, 16), (0, 16))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A PatchCore run at 64 px, of which the network sees the centre 32, and what it printed."""
    from tests.conftest import compose_app

    root = tmp_path_factory.mktemp("conventions")
    rng = np.random.default_rng(0)
    for name in [f"good/{n}" for n in range(8)] + [f"bad/{n}" for n in DEFECTS]:
        pixels = rng.integers(100, 140, (128, 128, 3), dtype=np.uint8)
        mask = np.zeros((128, 128), np.uint8)
        if name.startswith("bad"):
            rows, columns = DEFECTS[name.removeprefix("bad/")]
            pixels[slice(*rows), slice(*columns)] = 255
            mask[slice(*rows), slice(*columns)] = 255
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / f"{name.removeprefix('bad/')}.png")
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / f"{name}.png")
    cfg = compose_app(
        "run", "data=folder", f"data.root={root}", "data.normal_dir=good", "data.abnormal_dir=bad",
        "data.mask_dir=masks", "transform.resize=64", "transform.crop=32", "evaluation.size=32",
        "model.target_dim=32", "evaluation.bootstrap=0", "evaluation.latency_images=1",
        "backbone=efficientnet_lite0", "hardware=cpu", "hardware.num_workers=0",
        f"runs_dir={root / 'runs'}",
    )  # fmt: skip
    return run_experiment(cfg)


def again(finished, app_config, tmp_path, *overrides):
    """Metrics of `src.evaluate` and the marked pixels of each image on the grid."""
    run = f"run={finished.run.directory}"
    metrics = evaluate_run(
        app_config("evaluate", run, f"out={tmp_path}", "device=cpu", "report.enabled=false",
                   *overrides)
    )  # fmt: skip
    return metrics, marked(tmp_path)


def marked(folder):
    statistics = SavedRun(folder).pixel_statistics()
    assert statistics is not None
    pixels = statistics.defect.sum(axis=1).tolist()
    names = [path.rsplit("/")[-1].removesuffix(".png") for path in statistics.image.tolist()]
    return {name: count for name, count in zip(names, pixels, strict=True) if count}


def test_a_defect_outside_the_crop_is_left_out_by_name_and_its_share_is_a_number(finished, capsys):
    metrics, directory = finished.metrics, finished.run.directory
    # 32 x 32 seen; 32 x 32 of which 16 rows are cut off; 16 x 16 cut off.
    assert metrics["test/unseen_defect_pixels"] == pytest.approx((512 + 256) / (2 * 1024 + 256))
    assert marked(directory) == {"seen": 16 * 16, "half": 8 * 16}
    assert metrics["test/images_defective"] == 3
    said = (directory / "log.txt").read_text() + (directory / "report.html").read_text()
    assert said.count("1 image with the whole defect outside the centre crop") >= 2
    assert "(bad/corner.png)" in said
    assert "over the centre 32x32 after resizing to a shorter side of 64, on a 32x32 grid" in said
    print_result(SavedRun(directory))
    shown = " ".join(capsys.readouterr().out.split())
    assert "pixel metrics over the centre 32x32" in shown and "masks by nearest neighbour" in shown
    assert "Never seen" in shown and "0.3333" in shown


def test_the_whole_image_can_be_evaluated_without_fitting_again(finished, app_config, tmp_path):
    whole = ("evaluation.whole_image=true", "evaluation.size=64")
    metrics, pixels = again(finished, app_config, tmp_path, *whole)
    assert pixels == {"seen": 256, "half": 256, "corner": 64}
    assert metrics["test/unseen_defect_pixels"] == pytest.approx(1 / 3)
    assert metrics["test/pixel_auroc"] < finished.metrics["test/pixel_auroc"]
    assert metrics["test/image_auroc"] == finished.metrics["test/image_auroc"]
    assert (
        not (tmp_path / "log.txt").exists() or "outside" not in (tmp_path / "log.txt").read_text()
    )


def test_masks_can_be_eroded_as_the_official_code_does(finished, app_config, tmp_path):
    _, pixels = again(finished, app_config, tmp_path, "evaluation.masks=eroded")
    # Of 16 x 16 pixels the rim mixes with its surroundings; the crop cuts the half at its row 16.
    assert pixels == {"seen": 14 * 14, "half": 7 * 14}
