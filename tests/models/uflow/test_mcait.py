"""The CaiT pair: truncation, its own norms, sizes, weights from files, no moving parts."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from src.backbones.mcait import CaitPair
from src.errors import ConfigError, WeightsError

NAMES = ["cait_xxs24_384", "cait_xxs24_224"]  # the smallest of timm at two sizes


def pair(weights="random", blocks=(3, 2), size=384, **changes):
    options = {"name": "pair", "networks": NAMES, "precision": "float32", "size": size}
    options |= {"image_size": (size, size), "weights": weights, "blocks": list(blocks)}
    return CaitPair(**(options | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Whole timm networks with random weights, and files of them."""
    torch.manual_seed(0)
    folder, networks, files = tmp_path_factory.mktemp("weights"), [], []
    for name in NAMES:
        net = timm.create_model(name, pretrained=False).eval()
        for gain in (p for n, p in net.named_parameters() if "gamma" in n):
            torch.nn.init.constant_(gain, 0.3)  # else blocks are nearly the identity
        torch.nn.init.normal_(net.norm.weight)
        networks.append(net)
        files.append(str(folder / f"{name}.safetensors"))
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, files[-1])
    return networks, files


def test_maps_equal_hooks_on_the_whole_networks(whole):
    networks, files = whole
    image = torch.randn(1, 3, 384, 384)
    views = [image, F.interpolate(image, (224, 224), mode="bicubic", align_corners=True)]
    maps = pair(files)(image)
    for net, view, last, found in zip(networks, views, (2, 1), maps, strict=True):
        seen = []
        hook = net.blocks[last].register_forward_hook(lambda *a, s=seen: s.append(a[2]))
        with torch.no_grad():
            net(view)
            tokens = net.norm(seen[0])
        hook.remove()
        side = view.shape[-1] // 16
        expected = tokens.transpose(1, 2).reshape(1, -1, side, side)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_channels_strides_and_sizes_are_reported(whole):
    extractor = pair(whole[1])
    assert extractor.channels == (192, 192)
    assert extractor.reductions == (16, 27)  # 384/24 and 384/14; the paper's pair has 16 and 32
    assert extractor.normalised


def test_nothing_beyond_the_last_block_used_is_kept():
    extractor = pair()
    keys = set(extractor.state_dict())
    assert not any("token_only" in k or "head" in k or "cls_token" in k for k in keys)
    assert {len(net.blocks) for net in extractor.networks} == {3, 2}
    assert not any(p.requires_grad for p in extractor.parameters())


def test_the_paper_s_pair_keeps_the_known_number_of_parameters():
    from src.backbones.mcait import _truncated_cait

    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in _truncated_cait(name, kept, random=True).parameters())
            for name, kept in (("cait_m48_448", 41), ("cait_s24_224", 21))
        ]
    assert counts == [291_882_272, 37_654_224]


def test_training_mode_never_reaches_the_backbone():
    extractor = pair()
    extractor.train()
    assert not any(module.training for module in extractor.modules())


def test_identity_follows_the_weights(whole):
    first, again = pair(whole[1]), pair(whole[1])
    assert first.identity == again.identity
    with torch.no_grad():
        again.networks[0].pos_embed += 1
    assert pair().identity != first.identity


def test_other_image_sizes_are_refused_with_the_one_that_works():
    with pytest.raises(ConfigError, match=r"resize=\[384,384\]"):
        pair(image_size=(256, 256))


def test_wrong_options_are_explained(whole, tmp_path):
    with pytest.raises(ConfigError, match="cait_xxs24_384"):
        pair(networks=["cait_xxs24_38", "cait_xxs24_224"])
    with pytest.raises(ConfigError, match="24 blocks"):
        pair(blocks=(25, 2))
    with pytest.raises(ConfigError, match="one file per network"):
        pair(weights="one.pth")
    with pytest.raises(ConfigError, match="precision"):
        pair(precision="float64")
    save_file({"pos_embed": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match="does not have all tensors"):
        pair([str(tmp_path / "bad.safetensors"), whole[1][1]])
