from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from src.backbones.features import FeatureExtractor
from src.backbones.weight_files import file_for
from src.backbones.weights import find_weights
from src.errors import ConfigError, WeightsError

LITE0 = "tf_efficientnet_lite0"


def lite0(layers=("blocks.2", "blocks.4"), weights="auto", size=(64, 64), **changes):
    options = {"padding_mode": None, "precision": "float32", "channels_last": True}
    return FeatureExtractor(LITE0, layers, weights, size, **(options | changes))


@pytest.fixture(autouse=True)
def no_local_weights(monkeypatch):
    monkeypatch.delenv("WEIGHTS_DIR", raising=False)


def test_bundled_weights_classify_a_cat_as_a_cat():
    skimage_data = pytest.importorskip("skimage.data")
    model = timm.create_model(LITE0).eval()
    model.load_state_dict(find_weights(LITE0, model)[0])
    cat = Image.fromarray(skimage_data.cat()).resize((224, 224), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(cat)).permute(2, 0, 1).float()[None] / 127.5 - 1
    with torch.no_grad():
        top = int(model(image).argmax())
    assert top in range(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian cat


def test_maps_equal_hooks_on_the_whole_network():
    extractor = lite0()
    whole = timm.create_model(LITE0).eval()
    whole.load_state_dict(find_weights(LITE0, whole)[0])
    seen = {}
    for name in ("blocks.2", "blocks.4"):
        whole.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.__setitem__(name, out)
        )
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole(image)
    for ours, theirs in zip(extractor(image), seen.values(), strict=True):
        scale = theirs.abs().max().item()  # BatchNorm is folded into the convolutions
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5 * scale)


def test_network_is_cut_behind_the_last_layer():
    extractor = lite0()
    used = sum(p.numel() for p in extractor.parameters())
    assert used < 0.2 * sum(p.numel() for p in timm.create_model(LITE0).parameters())
    assert extractor.channels == (40, 112)
    assert extractor.reductions == (8, 16)


def test_training_mode_does_not_move_batchnorm_statistics():
    extractor = lite0()
    before = {k: v.clone() for k, v in extractor.state_dict().items()}
    extractor.train()
    extractor(torch.randn(4, 3, 64, 64))
    assert all(torch.equal(before[k], v) for k, v in extractor.state_dict().items())
    assert not any(p.requires_grad for p in extractor.parameters())


def test_autocast_maps_stay_close_and_come_out_as_float32():
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    exact, rough = lite0()(image)[0], lite0(precision="bfloat16")(image)[0]
    assert rough.dtype is torch.float32
    assert (exact - rough).norm() < 0.05 * exact.norm()


def test_the_autocast_of_a_training_step_rounds_no_frozen_features():
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    extractor = lite0()
    with torch.autocast("cpu", torch.bfloat16):
        inside = extractor(image)
    assert all(torch.equal(a, b) for a, b in zip(inside, extractor(image), strict=True))


def test_identity_changes_with_weights_and_layers_only():
    assert lite0().identity == lite0(size=(96, 96)).identity
    assert lite0().identity != lite0(layers=("blocks.2",)).identity
    torch.manual_seed(0)
    assert lite0().identity != lite0(weights="random").identity


@pytest.mark.parametrize(
    ("name", "layers", "shape"),
    [
        ("vit_tiny_patch16_224", ["blocks.1.norm2"], (192, 14, 14)),
        ("vit_tiny_patch16_224", ["norm"], (192, 14, 14)),
        ("swin_tiny_patch4_window7_224", ["layers.2.blocks.1"], (384, 14, 14)),
    ],
)
def test_tokens_return_to_the_image_grid(name, layers, shape):
    extractor = FeatureExtractor(name, layers, "random", (224, 224), None, "float32", False)
    assert extractor(torch.randn(2, 3, 224, 224))[0].shape == (2, *shape)


def test_token_order_is_row_major():
    extractor = FeatureExtractor(
        "vit_tiny_patch16_224", ["blocks.0"], "random", (224, 224), None, "float32", False
    )
    image = torch.zeros(1, 3, 224, 224)
    image[..., 16:32, 48:64] = 5.0  # row 1, column 3 of the patch grid
    change = (extractor(image)[0] - extractor(torch.zeros_like(image))[0]).norm(dim=1)[0]
    assert divmod(int(change.argmax()), 14) == (1, 3)


def test_reflect_padding_equals_padding_the_image_first():
    def first_layer(mode):
        torch.manual_seed(0)
        return FeatureExtractor("vgg11", ["features.0"], "random", (16, 16), mode, "float32", False)

    image = torch.randn(1, 3, 16, 16)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
    expected = first_layer(None)(padded)[0][..., 1:-1, 1:-1]
    assert torch.allclose(first_layer("reflect")(image)[0], expected, atol=1e-6)


def test_weights_dir_comes_first_and_partial_checkpoints_suffice(tmp_path, monkeypatch):
    torch.manual_seed(3)
    donor = timm.create_model("resnet18")
    needed = {k: v for k, v in donor.state_dict().items() if not k.startswith(("layer4", "fc"))}
    save_file(needed, tmp_path / "resnet18.tv_in1k.safetensors")
    monkeypatch.setenv("WEIGHTS_DIR", str(tmp_path))
    arguments = ("auto", (64, 64), None, "float32", False)
    assert find_weights("resnet18.tv_in1k", donor)[1].endswith("resnet18.tv_in1k.safetensors")
    FeatureExtractor("resnet18.tv_in1k", ["layer2", "layer3"], *arguments)
    with pytest.raises(WeightsError, match="layer4"):
        FeatureExtractor("resnet18.tv_in1k", ["layer4"], *arguments)


def test_weights_of_another_shape_are_named(tmp_path):
    state = timm.create_model("resnet18").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight"):
        FeatureExtractor(
            "resnet18", ["layer1"], str(tmp_path / "w.pth"), (64, 64), None, "float32", False
        )


def test_related_file_names_are_found_but_other_models_are_not(tmp_path):
    for name in ("resnet18_tv_v1.pth", "resnet18d.pth", "vit_base_patch16_224.pth"):
        (tmp_path / name).touch()
    assert file_for("resnet18.tv_in1k", tmp_path).name == "resnet18_tv_v1.pth"
    assert file_for("vit_base_patch16.x", tmp_path) is None
    (tmp_path / "resnet18-other.pth").touch()
    with pytest.raises(WeightsError, match="Several files"):
        file_for("resnet18.tv_in1k", tmp_path)


def test_offline_error_names_all_three_sources(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("src.backbones.weights._from_hub", no_network)
    with pytest.raises(WeightsError) as caught:
        find_weights("resnet18.tv_in1k", timm.create_model("resnet18"))
    for word in ("WEIGHTS_DIR", "wheel", "hub", "Network is unreachable", "efficientnet_lite0"):
        assert word in str(caught.value)


def test_a_pickle_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="not a readable weight file"):
        FeatureExtractor(
            "resnet18", ["layer1"], str(tmp_path / "evil.pth"), (64, 64), None, "float32", False
        )


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"name": "resnet81"}, "resnet18"),
        ({"layers": ["layre2"]}, "layer2"),
        ({"precision": "float61"}, "float16"),
    ],
)
def test_typos_are_answered_with_the_nearest_name(change, hint):
    options = {
        "name": "resnet18",
        "layers": ["layer2"],
        "weights": "random",
        "image_size": (64, 64),
        "padding_mode": None,
        "precision": "float32",
        "channels_last": False,
    }
    with pytest.raises(ConfigError, match=hint):
        FeatureExtractor(**(options | change))
