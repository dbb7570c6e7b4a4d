from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

import pytest
import torch
from torch import Tensor, nn

from src.errors import ConfigError, SavedModelError
from src.evaluation.view import resize_maps
from src.models.base import AnomalyModule
from src.models.build import read_options
from src.result import Prediction

Border = StrEnum("Border", ["zero", "reflect"])


class Backbone(nn.Module):
    def __init__(self, identity: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.identity = identity


class Brightness(AnomalyModule):
    """Scores by distance from a learnt mean colour; just enough to be saved and loaded."""

    def __init__(self, identity: str = "toy@1") -> None:
        super().__init__()
        self.backbone = Backbone(identity)
        self.mean = nn.Parameter(torch.zeros(3))

    def forward(self, image: Tensor) -> Prediction:
        anomaly_map = (image - self.mean.view(1, 3, 1, 1)).abs().mean(1)
        return Prediction(anomaly_map.amax((1, 2)), anomaly_map)


@pytest.fixture
def saved(tmp_path):
    model = Brightness()
    model.mean.data = torch.tensor([0.1, 0.2, 0.3])
    model.save(tmp_path)
    return tmp_path


def test_a_loaded_model_predicts_the_same(saved):
    model = Brightness()
    model.load(saved)
    image = torch.rand(2, 3, 4, 4)
    original = Brightness()
    original.mean.data = torch.tensor([0.1, 0.2, 0.3])
    assert torch.equal(model(image).score, original(image).score)


def test_frozen_backbones_are_referenced_and_not_copied(saved):
    assert (saved / "model.safetensors").stat().st_size < 200
    assert json.loads((saved / "model.json").read_text())["backbone"] == "toy@1"
    with pytest.raises(SavedModelError, match="backbone is not the one"):
        Brightness("toy@2").load(saved)


def test_saving_leaves_two_files_and_nothing_partial(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("position", [3, 60, -2])
def test_one_changed_byte_is_noticed(saved, position):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(SavedModelError, match="damaged or was changed"):
        Brightness().load(saved)


def test_another_method_and_another_format_are_refused(saved):
    card = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps(card | {"method": "PatchCore"}))
    with pytest.raises(SavedModelError, match="holds another method"):
        Brightness().load(saved)
    (saved / "model.json").write_text(json.dumps(card | {"format": 99}))
    with pytest.raises(SavedModelError, match="format 99"):
        Brightness().load(saved)
    (saved / "model.json").write_text("{")
    with pytest.raises(SavedModelError, match="No usable model"):
        Brightness().load(saved)


def test_a_folder_of_an_earlier_version_says_what_to_do(saved):
    card = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps(card | {"format": 1}))
    with pytest.raises(SavedModelError, match=r"format 1; an earlier version[\s\S]*run the exper"):
        Brightness().load(saved)


def test_checkpoints_hold_no_frozen_features_and_load_strictly():
    model = Brightness()
    checkpoint = {"state_dict": dict(model.state_dict())}
    model.on_save_checkpoint(checkpoint)
    assert list(checkpoint["state_dict"]) == ["mean"]
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=True)


@dataclass
class Inner:
    border: Border
    window: int

    def __post_init__(self) -> None:
        if self.window % 2 == 0:
            raise ConfigError("must be odd.", found=str(self.window), do="use 11")


@dataclass
class Settings:
    inner: Inner
    stages: list[list[int | None]]
    jitter: float | None


VALUES = {"inner": {"border": "zero", "window": 3}, "stages": [[1, None]], "jitter": 1}


def test_options_are_typed_values_of_the_configuration():
    options = read_options(Settings, VALUES)
    assert options == Settings(Inner(Border.zero, 3), [[1, None]], 1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"jiter": 0.1}, r"model\.jiter is no option[\s\S]*'jitter'"),
        ({"inner": {"border": "zero"}}, r"model\.inner\.window does not fit[\s\S]*missing"),
        ({"inner": {"border": "round", "window": 3}}, r"inner\.border[\s\S]*\[zero, reflect\]"),
        ({"inner": {"border": "zero", "window": 2.5}}, r"inner\.window[\s\S]*2\.5"),
        ({"inner": 3}, r"model\.inner does not fit"),
        ({"inner": {"border": "zero", "window": 2}}, "must be odd"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(changes, said):
    with pytest.raises(ConfigError, match=said):
        read_options(Settings, VALUES | changes)


def test_resized_maps_keep_constants_and_half_pixel_centres():
    assert torch.equal(resize_maps(torch.full((1, 3, 3), 2.5), 8), torch.full((1, 8, 8), 2.5))
    ramp = torch.arange(4.0).expand(1, 4, 4)
    assert torch.allclose(resize_maps(ramp, 8)[0, 0, 1:3], torch.tensor([0.25, 0.75]))
