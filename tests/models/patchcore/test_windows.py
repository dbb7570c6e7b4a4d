"""Overlapped windows: the split, the same features as of the whole image, the real commands."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from src.backbones.features import FeatureExtractor
from src.commands.export import export_run
from src.commands.predict import predict_images
from src.errors import ConfigError
from src.experiment import run_experiment
from src.models.patchcore.options import WindowOptions
from src.models.patchcore.windows import Windowed, split_axis
from tests.models.patchcore.stand_ins import TwoMaps, build


class TwoGrids(TwoMaps):
    reductions = (4, 8)


@pytest.mark.parametrize(
    ("side", "starts", "kept"),
    [
        (40, [0], [(0, 40)]),
        (64, [0, 24], [(0, 32), (32, 64)]),
        (93, [0, 17, 35, 53], [(0, 29), (29, 46), (46, 64), (64, 93)]),
    ],
)
def test_windows_of_40_cells_that_overlap_by_8_start_and_end_where_superadd_has_them(
    side, starts, kept
):
    windows = split_axis(side, 40, 8)
    assert [one.start for one in windows] == starts
    assert [(one.first, one.end) for one in windows] == kept


@pytest.mark.parametrize(("window", "overlap"), [(10, 0), (10, 2), (28, 4), (7, 3)])
def test_every_cell_is_kept_once_and_far_from_borders_that_are_not_the_images(window, overlap):
    for side in range(window, 150):
        windows = split_axis(side, window, overlap)
        assert windows[0].first == 0
        assert windows[-1].end == side
        assert windows[0].start == 0
        assert windows[-1].start + window == side
        for a, b in pairwise(windows):
            assert a.end == b.first
            assert a.start + window - a.end >= overlap
            assert b.first - b.start >= overlap


@pytest.mark.parametrize("batch", [1, 3])
def test_without_padding_maps_are_those_of_the_whole_image(batch):
    network, image = TwoGrids(), torch.randn(batch, 3, 72, 104)
    windowed = Windowed(network, 32, 8, (72, 104))
    for seen, whole in zip(windowed(image), network(image), strict=True):
        torch.testing.assert_close(seen, whole, rtol=1e-5, atol=1e-5)


def test_real_features_are_those_of_the_whole_image_where_no_padding_reaches():
    network = FeatureExtractor(
        "tf_efficientnet_lite0", ["blocks.1", "blocks.2"], "auto", (192, 192), None, "float32", True
    )
    image = torch.randn(1, 3, 320, 448, generator=torch.Generator().manual_seed(0))
    windowed, whole = Windowed(network, 192, 64, (320, 448))(image), network(image)
    for seen, expected in zip(windowed, whole, strict=True):
        assert seen.shape == expected.shape
        torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-3)


def test_sides_between_two_cells_are_filled_up():
    network = TwoGrids()
    maps = Windowed(network, 32, 8, (50, 61))(torch.randn(2, 3, 50, 61))
    assert [tuple(one.shape) for one in maps] == [(2, 6, 14, 16), (2, 10, 7, 8)]


def test_the_identity_tells_windows_from_the_whole_image():
    network = TwoGrids()
    assert build(network, windows=WindowOptions(32, 8)).backbone.identity != network.identity


@pytest.mark.parametrize(
    ("size", "overlap", "says"),
    [(30, 8, "multiples of 8"), (32, 4, "multiples of 8"), (32, 16, "2 \\* overlap below size"),
     (40, 8, "larger than the images")],
)  # fmt: skip
def test_windows_that_cannot_be_are_refused(size, overlap, says):
    with pytest.raises(ConfigError, match=says):
        build(TwoGrids(), windows=WindowOptions(size, overlap))


def test_a_run_through_windows_is_finished_predicts_and_exports(
    tiny, app_config, tmp_path, drawn_data, drawn_images, monkeypatch
):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    found = run_experiment(
        app_config(
            "run", *tiny, f"runs_dir={tmp_path / 'runs'}", "report.enabled=false",
            "transform.resize=80", "model.windows.size=48", "model.windows.overlap=16",
        )
    )  # fmt: skip
    run = found.run.directory
    bank = found.run.read_json("model/model.json")
    assert "windows48/16" in bank["backbone"]
    out = tmp_path / "out"
    words = (f"run={run}", f"images={drawn_images[0].parent}", f"out={out}", "device=cpu")
    assert predict_images(app_config("predict", *words)) == 0
    assert (out / "scores.csv").is_file()
    parity = export_run(
        app_config("export", f"run={run}", f"out={tmp_path / 'detector'}", "parity.images=4",
                   "parity.repeats=1")
    )  # fmt: skip
    assert parity.flips == 0
