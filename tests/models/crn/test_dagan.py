from __future__ import annotations

import pytest
import torch

from src.errors import ConfigError
from src.models.build import build_model
from src.models.crn.dagan import judge


@pytest.fixture
def dagan(composed):
    def build(*overrides):
        cfg = composed("model=dagan", "model.base_channels=4", *overrides)
        return build_model(cfg, (32, 32))

    return build


def images(count):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_discriminator_has_the_official_number_of_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in judge(64).parameters()) == 1_315_587


def test_neither_loss_reaches_the_other_network(dagan):
    model = dagan()
    generator, discriminator = model.losses(images(2))
    generator.backward(retain_graph=True)
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(p.grad is not None for p in model.generator.parameters())
    model.zero_grad()
    discriminator.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad is not None for p in model.discriminator.parameters())


def test_the_losses_are_the_written_out_ones(dagan):
    model, image = dagan(), images(2)
    generator, discriminator = model.losses(image)
    model.zero_grad()
    with torch.no_grad():
        made = model.generator(image)
        again, real = model.discriminator(made), model.discriminator(image)
        expected_g = ((made - again) ** 2).mean() + 40 * ((image - made) ** 2).mean()
        expected_d = ((real - image) ** 2).mean() - ((again - made) ** 2).mean()
    assert generator.item() == pytest.approx(expected_g.item(), rel=1e-5)
    assert discriminator.item() == pytest.approx(expected_d.item(), rel=1e-5, abs=1e-6)


def test_scores_are_the_mean_of_both_reconstruction_errors(dagan):
    model = dagan().eval()
    image = images(3)
    with torch.no_grad():
        prediction = model(image)
        errors = [(image - net(image)).abs().mean((1, 2, 3)) for net in
                  (model.generator, model.discriminator)]  # fmt: skip
    assert prediction.anomaly_map.shape == (3, 32, 32)
    torch.testing.assert_close(prediction.score, (errors[0] + errors[1]) / 2)


def test_it_trains_saves_and_loads(dagan, toy, fit, tmp_path):
    model = dagan("model.optimizer.lr=1e-3")
    before = model.losses(images(4))[0].item()
    fit(model, toy(), 20)
    model.eval()
    assert model.losses(images(4))[0].item() < before
    model.save(tmp_path / "model")
    other = dagan("seed=3").eval()
    assert not torch.equal(other(images(1)).score, model(images(1)).score)
    other.load(tmp_path / "model")
    assert torch.equal(other(images(1)).score, model(images(1)).score)


def test_the_seed_alone_decides_the_initial_weights(dagan):
    torch.manual_seed(1)
    one = dagan()
    torch.manual_seed(2)
    two = dagan()
    assert torch.equal(one.generator.encoder[0].conv.weight, two.generator.encoder[0].conv.weight)


def test_a_backbone_is_refused(dagan):
    from src.models.crn.dagan import DAGAN

    options = dagan().options
    with pytest.raises(ConfigError, match="no use for a backbone"):
        DAGAN(torch.nn.Identity(), (32, 32), options)
