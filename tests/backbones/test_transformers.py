"""DINOv2 and DINOv3 as frozen features: sizes, positions, blocks, norms; weights are random."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from src.backbones.features import FeatureExtractor
from src.backbones.weights import resample
from src.composing import compose
from src.errors import ConfigError

V2, REGISTERS = "vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2.lvd142m"
V3 = "vit_small_patch16_dinov3.lvd1689m"
SIZE = {V2: (56, 84), REGISTERS: (56, 84), V3: (64, 96)}  # 4 x 6 patches
NAMED = [
    f"dinov2_{size}{registers}"
    for size in ("small", "base", "large")
    for registers in ("", "_registers")
] + [f"dinov3_{size}" for size in ("small", "base", "large", "huge_plus")]


def extractor(name, layers, size, weights="random", precision="float32"):
    return FeatureExtractor(name, layers, str(weights), size, None, precision, False)


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    """Whole networks of three blocks with the weights that lie in a file beside them."""
    found = {}
    for name in SIZE:
        torch.manual_seed(0)
        model = timm.create_model(name, depth=3).eval()  # for squares of 518 or 256 pixels
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
        found[name] = model, path
    return found


@pytest.mark.parametrize("backbone", NAMED)
def test_each_name_is_a_model_of_this_timm_with_as_many_blocks_as_stages(backbone):
    group = compose("run", [f"backbone={backbone}"]).backbone
    assert group.name in timm.list_models(pretrained=True)
    with torch.device("meta"):
        model = timm.create_model(group.name)
    assert len(group.stages) == len(model.blocks)
    assert [stage.split("+")[0] for stage in group.stages] == [
        f"blocks.{i}" for i in range(len(model.blocks))
    ]
    assert list(group.layers) == [f"blocks.{len(model.blocks) - 1}+norm"]
    assert model.patch_embed.patch_size == (group.step, group.step)
    config = model.pretrained_cfg
    assert (config["mean"], config["std"]) == (tuple(group.mean), tuple(group.std))


@pytest.mark.parametrize("name", [REGISTERS, V3])
def test_maps_of_another_size_are_those_of_timm_itself(donors, name):
    model, path = donors[name]
    dynamic = timm.create_model(name, depth=3, dynamic_img_size=True).eval()
    dynamic.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, *SIZE[name], generator=torch.Generator().manual_seed(1))
    ours = extractor(name, ["blocks.0", "blocks.2", "blocks.2+norm"], SIZE[name], path)(image)
    with torch.no_grad():
        bare = dynamic.forward_intermediates(image, indices=[0, 2], intermediates_only=True)
        normed = dynamic.forward_intermediates(
            image, indices=[2], norm=True, intermediates_only=True
        )
    for one, other in zip(ours, [*bare, *normed], strict=True):
        assert one.shape == (2, 384, 4, 6)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_description_is_the_class_token_behind_the_last_norm(donors):
    model, path = donors[V3]
    image = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.forward_features(image)[:, 0]
    found = extractor(V3, ["blocks.0", "blocks.2+norm"], (256, 256), path).describe(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    lite = FeatureExtractor(
        "tf_efficientnet_lite0", ["blocks.1"], "auto", (64, 64), None, "float32", True
    )
    torch.testing.assert_close(
        lite.describe(image[..., :64, :64]), lite(image[..., :64, :64])[0].mean((2, 3))
    )


@pytest.mark.parametrize("prefix", [0, 1])
def test_positions_move_as_timm_moves_them(prefix):
    positions = torch.randn(1, prefix + 37 * 37, 8, generator=torch.Generator().manual_seed(0))
    for grid in ((32, 32), (48, 20), (5, 60)):
        expected = resample_abs_pos_embed(positions, list(grid), num_prefix_tokens=prefix)
        torch.testing.assert_close(resample(positions, grid, prefix, None), expected)


def cubic(x: float) -> float:
    """The kernel of bicubic interpolation with a = -0.75."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def shifted(side: int, cells: int) -> torch.Tensor:
    """Weights (cells, side) of DINOv2's own resize along one axis, written out."""
    matrix = torch.zeros(cells, side, dtype=torch.float64)
    for i in range(cells):
        at = (i + 0.5) * side / (cells + 0.1) - 0.5
        for tap in range(int(at // 1) - 1, int(at // 1) + 3):
            matrix[i, min(max(tap, 0), side - 1)] += cubic(at - tap)
    return matrix


@pytest.mark.parametrize("grid", [(32, 32), (48, 40), (5, 60)])
def test_positions_of_dinov2_are_sampled_by_its_shifted_scale(grid):
    positions = torch.randn(1, 1 + 37 * 37, 3, generator=torch.Generator().manual_seed(0))
    square = positions[0, 1:].double().view(37, 37, 3)
    rows, columns = (shifted(37, cells) for cells in grid)
    expected = torch.einsum("hi,wj,ijc->hwc", rows, columns, square).flatten(0, 1)
    found = resample(positions, grid, 1, 0.1)
    assert torch.equal(found[:, 0], positions[:, 0])
    torch.testing.assert_close(found[0, 1:].double(), expected, rtol=1e-4, atol=1e-4)


def test_weights_of_a_square_give_features_of_any_size_and_the_rule_is_the_models_own(donors):
    _, path = donors[V2]
    small = extractor(V2, ["blocks.0"], (56, 84), path)
    assert small.channels == (384,)
    positions = small.network.state_dict()["pos_embed"]
    trained = donors[V2][0].pos_embed
    assert torch.equal(positions, resample(trained, (4, 6), 1, 0.1))
    assert not torch.allclose(positions, resample(trained, (4, 6), 1, None), atol=1e-3)


def test_sizes_between_patches_are_refused_with_the_nearest_that_fit():
    with pytest.raises(ConfigError, match=r"transform\.resize=\[448,322\]"):
        extractor(V2, ["blocks.0"], (450, 320))


def test_bfloat16_stays_close(donors):
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    exact, rough = (
        extractor(V3, ["blocks.2+norm"], (64, 96), donors[V3][1], precision)(image)[0]
        for precision in ("float32", "bfloat16")
    )
    assert rough.dtype is torch.float32
    assert (exact - rough).norm() < 0.05 * exact.norm()
