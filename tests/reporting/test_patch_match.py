from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from src.commands import patch_match as matching
from src.data.samples import Sample
from src.errors import DataError
from src.reporting import figures
from src.reporting import match_pictures as draw
from src.reporting.colour_scale import ColourScale
from src.reporting.match_pictures import MatchGrid
from tests.reporting.pictures import SCALE, make_picture

RNG = np.random.default_rng(3)


def make_grid(h=4, w=6, side=48):
    display = RNG.integers(0, 255, (side, side, 3), dtype=np.uint8)
    place = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1)[::-1, ::-1]
    image = np.arange(h * w).reshape(h, w) % 3
    distance = np.linspace(0, 3, h * w).reshape(h, w).astype(np.float32)
    return MatchGrid(display, distance, image, place, "euclidean")


def source(index):
    return f"good/{index:03}.png", np.full((48, 48, 3), 40 * index, dtype=np.uint8)


def test_the_boxes_of_all_cells_tile_the_picture_without_gap_or_overlap():
    for h, w, side in ((4, 6, 48), (7, 5, 51), (28, 28, 224)):
        grid = make_grid(h, w, side)
        covered = np.zeros((side, side), dtype=int)
        for row in range(h):
            for column in range(w):
                box = grid.box(row, column)
                covered[box.top : box.bottom, box.left : box.right] += 1
        assert (covered == 1).all()


def test_a_match_points_to_the_source_image_and_place_of_its_bank_row():
    grid = make_grid()
    match = draw.match_at(grid, 8, source)
    assert match.source == f"good/{grid.image[1, 2]:03}.png"
    assert match.source_box == grid.box(*grid.place[1, 2])
    assert match.distance == pytest.approx(float(grid.distance[1, 2]))


def test_the_figure_shows_both_crops_and_states_the_distance():
    picture = make_picture(match=True)
    sheet = draw.match_figure(picture, SCALE, ["a.png"], side=96)
    assert sheet.size == (3 * 104 + 8, 72 + 30 + 96 + 30)  # 48 x 64 pixels above square crops
    cyan = (np.asarray(sheet) == figures.PREDICTION).all(axis=-1)
    thirds = [cyan[:, k * 104 : (k + 1) * 104].sum() for k in range(3)]
    assert thirds[0] > 50 and thirds[2] > 50  # a box in the test column and in the normal column


def test_a_picture_without_a_match_is_refused():
    with pytest.raises(ValueError, match="no match"):
        draw.match_figure(make_picture(), SCALE)


def test_every_patch_gets_one_frame_and_each_normal_image_is_read_once():
    grid, read = make_grid(), []

    def counted(index):
        read.append(index)
        return source(index)

    frames = list(draw.patch_frames(grid, SCALE, counted, 40, range(24)))
    assert len(frames) == 24 and sorted(read) == [0, 1, 2]
    assert len({frame.size for frame in frames}) == 1


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_holds_every_step_th_patch_and_loops(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    count = draw.write_animation(
        path, make_grid(), SCALE, source, side=40, milliseconds=100, step=2
    )
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    with Image.open(path) as image:
        assert count == image.n_frames == 12
        assert image.info.get("loop") == 0
        image.seek(5)
        image.load()
        assert image.info["duration"] == pytest.approx(100, abs=10)


def test_the_palette_of_an_animation_keeps_the_page_white(tmp_path):
    draw.write_animation(tmp_path / "a.gif", make_grid(), SCALE, source, side=40, milliseconds=50)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_an_equal_share_scale_calls_as_many_patches_hot():
    values, other = RNG.normal(size=(20, 20)), RNG.exponential(size=(20, 20)) * 50
    scale = ColourScale.fit([values], 1.0)
    second = draw.equal_share(values, other, scale)
    assert (other > second.threshold).sum() == (values > 1.0).sum()
    calm = draw.equal_share(values, other, ColourScale.fit([values], 99.0))
    assert not (other > calm.threshold).any()


def test_the_pair_of_heat_maps_has_a_panel_a_map():
    sheet = draw.heat_pair(make_picture(48, 48), [("a", np.ones((3, 3)), SCALE)] * 2, side=60)
    assert sheet.width == 3 * 68 + 8


def make_data(tmp_path):
    names = ("test/good/0.png", "test/bad/0.png", "test/bad/1.png")
    samples = [Sample(tmp_path / name, None, 0, "good", "test") for name in names]
    return SimpleNamespace(samples=samples, root=tmp_path)


def test_images_are_found_by_the_end_of_their_path(tmp_path):
    data = make_data(tmp_path)
    assert matching.find_sample(matching.Path("bad/0.png"), data) is data.samples[1]
    assert matching.find_sample(tmp_path / "test/bad/1.png", data) is data.samples[2]


def test_an_ambiguous_or_misspelt_image_is_refused_with_the_candidates(tmp_path):
    data = make_data(tmp_path)
    with pytest.raises(DataError, match="Several images"):
        matching.find_sample(matching.Path("0.png"), data)
    with pytest.raises(DataError, match=r"test/bad/1\.png"):
        matching.find_sample(matching.Path("test/bda/1.png"), data)


def test_any_other_file_can_be_explained_too(tmp_path):
    path = tmp_path / "mine.png"
    path.write_bytes(b"")
    assert matching.find_sample(path, make_data(tmp_path)).label == -1
