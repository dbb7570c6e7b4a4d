from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from src.data.transforms import ImageTransform
from src.errors import ConfigError
from src.models.base import AnomalyModule
from src.models.build import build_model
from src.models.haloae.losses import loss_weights
from src.models.haloae.module import HaloAE
from tests.reference_haloae import weights_by_epoch

CONF = Path(__file__).parents[3] / "conf"


def composed(*words: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", overrides=["data=synthetic", *words])


def build(*words: str) -> AnomalyModule:
    cfg = composed(*words)
    return build_model(cfg, ImageTransform(**cfg.transform).size)


def parameters(model: AnomalyModule) -> int:
    assert isinstance(model, HaloAE)
    return sum(p.numel() for p in model.autoencoder.parameters())


@pytest.fixture(scope="module")
def paper() -> AnomalyModule:
    return build("model=haloae", "backbone.weights=random")


def test_the_model_file_is_the_published_network(paper):
    assert paper.backbone.extractor.name == "vgg19.tv_in1k"
    assert paper.backbone.channels == 704
    assert parameters(paper) == 11_857_421


def test_the_model_file_follows_the_published_curriculum(paper):
    for epoch in range(0, 251, 10):
        weights = loss_weights(epoch / 251, paper.options.loss.schedule)
        assert weights == pytest.approx(weights_by_epoch(epoch), abs=2e-5)


def test_the_model_file_trains_188_250_steps():
    cfg = composed("model=haloae")
    epoch = cfg.data.samples_per_epoch // cfg.data.batch_size
    assert epoch == 750
    assert epoch * cfg.trainer.max_epochs == 188_250


def test_the_preset_for_two_cores_runs_on_bundled_weights():
    model = build("experiment=haloae_small")
    assert model.backbone.channels == 176
    assert parameters(model) < 1_000_000


def test_any_backbone_of_feature_maps_fits_the_model_file():
    model = build("model=haloae", "backbone=efficientnet_lite0", "model.stages=[1,2,3]")
    assert model.backbone.channels == 176
    assert model.autoencoder.decoder[-1].conv2.out_channels == 176


def test_a_size_that_does_not_fit_is_refused_before_training():
    with pytest.raises(ConfigError, match=r"\[208,208\] or \[256,256\]"):
        build("experiment=haloae_small", "transform.resize=[224,224]")


def test_a_method_without_backbone_is_refused():
    with pytest.raises(ConfigError, match="backbone=vgg19"):
        build("experiment=haloae_small", "backbone=none")


def test_every_number_of_the_model_file_names_its_source():
    lines = (CONF / "model" / "haloae.yaml").read_text().splitlines()
    body = lines[lines.index("model:") :]
    bare = [
        line
        for line in body
        if ":" in line and not line.rstrip().endswith(":") and "#" not in line and "${" not in line
    ]
    assert OmegaConf.load(CONF / "model" / "haloae.yaml").model.name == "haloae"
    allowed = (
        "_target_",
        "_partial_",
        "name:",
        "enabled",
        "maps:",
        "recon_image",
        "losses:",
        "crop",
        "interp",
    )
    assert [line for line in bare if not line.strip().startswith((*allowed, "antialias"))] == []
