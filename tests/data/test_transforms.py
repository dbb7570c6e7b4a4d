from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from src.composing import compose_checked
from src.data.images import open_rgb
from src.data.transforms import ImageTransform
from src.errors import ConfigError, DataError

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def transform(resize=64, crop=48, interpolation="bilinear", antialias=True, **rest):
    return ImageTransform(
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        antialias=antialias,
        **(IMAGENET | rest),
    )


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("shape", [(200, 200), (157, 203), (203, 157), (40, 51)])
@pytest.mark.parametrize(("resize", "crop"), [(64, 48), (64, 47), ([70, 60], 48), ([70, 60], None)])
def test_geometry_equals_torchvision_on_pil_images(interpolation, shape, resize, crop):
    image = Image.fromarray(noise(*shape))
    mode = tv.InterpolationMode(interpolation)
    steps = [v2.Resize(resize, interpolation=mode)] + ([v2.CenterCrop(crop)] if crop else [])
    expected = tv.pil_to_tensor(v2.Compose(steps)(image))
    ours = transform(resize, crop, interpolation)
    assert torch.equal(ours.pixels(image), expected)
    assert ours.size == tuple(expected.shape[1:])
    normalised = tv.normalize(expected.float().div(255), IMAGENET["mean"], IMAGENET["std"])
    assert torch.equal(ours(image), normalised)


@pytest.mark.parametrize("shape", [(200, 200), (90, 130)])
def test_without_antialias_the_tensor_is_resized_as_torchvision_0_14_did(shape):
    image = noise(*shape)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float().div(255)
    expected = tv.center_crop(tv.resize(tensor, [64], antialias=False), [48, 48])
    ours = transform(antialias=False)
    assert torch.allclose(ours.pixels(image), expected, atol=1e-6)
    assert (ours.pixels(image) - transform().pixels(image) / 255).abs().mean() > 0.03


def test_arrays_and_pil_images_give_the_same():
    image = noise(80, 80)
    assert torch.equal(transform()(image), transform()(Image.fromarray(image)))


def test_masks_stay_binary_and_follow_the_image():
    mask = np.zeros((200, 200), bool)
    mask[60:110, 30:140] = True
    image = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255
    ours = transform()
    seen, shown = ours.mask(mask), ours.display(image)[..., 0]
    assert seen.dtype == bool
    assert seen.shape == ours.size
    edge = (shown > 0) & (shown < 255)
    assert np.array_equal(seen[~edge], shown[~edge] > 0)


def test_display_is_the_input_before_normalisation(tmp_path):
    image = noise(90, 80)
    Image.fromarray(image).save(tmp_path / "a.png")
    for antialias in (True, False):
        ours = transform(antialias=antialias)
        shown = ours.display(open_rgb(tmp_path / "a.png"))
        back = ours(image) * torch.tensor(IMAGENET["std"]).view(3, 1, 1)
        back = (back + torch.tensor(IMAGENET["mean"]).view(3, 1, 1)) * 255
        assert shown.shape == (48, 48, 3)
        assert np.abs(back.permute(1, 2, 0).numpy() - shown).max() <= 0.51


@pytest.mark.parametrize("resize", [None, 96, [40, 80]])
def test_a_map_comes_back_to_the_place_it_was_computed_from(resize):
    """A bright square in the original survives crop, resize and the way back."""
    original = np.zeros((120, 160, 3), np.uint8)
    original[50:74, 70:94] = 255
    ours = transform(resize, [40, 60] if resize != 96 else [80, 96])
    seen = ours.pixels(original)[0].float() / 255
    coarse = torch.nn.functional.avg_pool2d(seen[None, None], 2)[0, 0]  # any grid will do
    for grid in (seen, coarse):
        back = ours.to_original(grid, (120, 160))
        assert back.shape == (120, 160)
        inside = back[56:68, 76:88]
        assert inside.min() > 0.9
        rows, columns = torch.where(back > 0.5)
        assert abs(rows.float().mean() - 61.5) < 0.75
        assert abs(columns.float().mean() - 81.5) < 0.75


def test_pixels_outside_the_crop_get_the_minimum_or_the_given_value():
    ours = transform(100, 50)
    values = torch.rand(50, 50, generator=torch.Generator().manual_seed(0)) + 3
    back = ours.to_original(values, (200, 200))
    outside = torch.ones(200, 200, dtype=torch.bool)
    outside[50:150, 50:150] = False
    assert (back[outside] == values.min()).all()
    assert (back[~outside] >= values.min()).all()
    assert torch.isnan(ours.to_original(values, (200, 200), fill=float("nan"))[outside]).all()


def test_to_original_of_the_same_size_is_the_identity():
    values = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    back = transform(32, None).to_original(values.numpy(), (32, 32))
    assert torch.allclose(back, values, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resize": 224, "crop": 256}, "larger"),
        ({"resize": [300, 200], "crop": [200, 300]}, "larger"),
        ({"resize": None, "crop": None}, "not fixed"),
    ],
)
def test_sizes_that_cannot_work_are_refused_at_once(changes, words):
    with pytest.raises(ConfigError, match=words):
        transform(**changes)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("resize=0", "at least 1"),
        ("crop=[1,2,3]", r"\[height,width\]"),
        ("interpolation=bilinaer", "bilinear"),
        ("mean=[0.5]", "three numbers"),
        ("std=[0.1,0.0,0.1]", "three numbers"),
    ],
)
def test_settings_that_mean_nothing_are_refused(word, words):
    with pytest.raises(ConfigError, match=words):
        compose_checked("run", [f"transform.{word}"])


def test_a_long_image_without_crop_is_refused_with_both_ways_out():
    with pytest.raises(DataError, match=r"crop=64.*\[64,64\]"):
        transform(64, None).pixels(noise(64, 100))


def test_an_image_smaller_than_the_crop_is_refused():
    with pytest.raises(DataError, match="smaller than the centre crop"):
        transform(None, 64).pixels(noise(64, 63))


def test_a_transform_is_built_from_its_config():
    node = {"resize": [70, 60], "crop": 48, "interpolation": "bicubic", "antialias": True,
            "mean": [0.5] * 3, "std": [0.25] * 3}  # fmt: skip
    image = noise(99, 77)
    built = ImageTransform(**OmegaConf.create(node))
    assert torch.equal(built(image), ImageTransform(**node)(image))
