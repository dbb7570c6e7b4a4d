"""`python -m src.patch_match` with a memory bank small enough to check by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from src.commands import patch_match as matching
from src.data.samples import Sample
from src.data.transforms import ImageTransform
from src.detector import Detection
from src.errors import ConfigError
from src.models.patchcore.region import Region
from src.result import Threshold
from src.saved_run import SavedRun


class TinyMemory(torch.nn.Module):
    """Patches of 8 x 8 pixels described by their mean colour; the bank is one normal image."""

    def __init__(self, bank):
        super().__init__()
        self.bank_rows = bank  # (M, 3)
        rows = SimpleNamespace(vectors=lambda: self.bank_rows)
        self.memory = SimpleNamespace(bank=rows, region=Region())

    def __len__(self):
        return len(self.bank_rows)

    def patches(self, image):
        return [self._patches(image)]

    def _patches(self, image):
        return torch.nn.functional.avg_pool2d(image, 8).permute(0, 2, 3, 1)  # (B, h, w, 3)

    def nearest_patches(self, image):
        patches = self._patches(image[None])[0]
        distance, row = torch.cdist(patches.flatten(0, 1), self.bank_rows).min(1)
        h, w = patches.shape[:2]
        place = torch.stack([row // w, row % w], dim=1).view(h, w, 2)
        zero = torch.zeros(h, w, dtype=torch.int32)
        return SimpleNamespace(distance=distance.view(h, w), image=zero, place=place)


@pytest.fixture
def setting(tmp_path, monkeypatch):
    ramp = np.linspace(0, 255, 32, dtype=np.uint8)
    normal = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(40)), axis=-1)
    broken = normal.copy()
    broken[16:24, 8:16] = (0, 0, 255)
    samples = []
    for name, pixels, split in (("good/0.png", normal, "train"), ("bad/1.png", broken, "test")):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
        samples.append(Sample(path, None, int(split == "test"), path.parent.name, split))
    transform = ImageTransform(
        resize=32, crop=None, interpolation="bilinear", antialias=True,
        mean=[0.0] * 3, std=[1.0] * 3,
    )  # fmt: skip
    model = TinyMemory(torch.empty(0, 3))
    model.bank_rows = model._patches(transform(normal)[None])[0].flatten(0, 1)
    anomaly_map = np.zeros((32, 32), np.float32)
    config = OmegaConf.create({
        "model": {"name": "patchcore", "distance": "euclidean"},
        "backbone": {"name": "mean", "layers": None}, "data": {"name": "toy", "category": "ramp"},
    })  # fmt: skip
    detector = SimpleNamespace(
        model=model, transform=transform, config=config, run=SavedRun(tmp_path / "run"),
        device=torch.device("cpu"), threshold=Threshold(0.2, 0.2, "conformal"),
        detect=lambda images: [Detection(1.0, True, anomaly_map, anomaly_map > 0, {})],
    )  # fmt: skip
    (tmp_path / "run" / "figures").mkdir(parents=True)
    scale = {"low": 0.0, "threshold": 0.2, "high": 1.0}
    (tmp_path / "run" / "figures" / "scale.json").write_text(json.dumps(scale))
    data = SimpleNamespace(samples=samples, root=tmp_path / "data", setup=lambda: None)
    monkeypatch.setattr(matching.Detector, "load", lambda path, device: detector)
    monkeypatch.setattr(matching, "AnomalyDataModule", lambda config: data)
    monkeypatch.setattr(matching, "fitted_samples", lambda run, data: data.samples)
    return detector, data


def config(tmp_path, **changes):
    animation = {"format": "gif", "side": 40, "step": 1, "milliseconds": 50}
    values = {"run": str(tmp_path / "run"), "image": "bad/1.png", "out": None, "device": "cpu"}
    return OmegaConf.create(values | {"animation": animation, "data": {"root": None}} | changes)


def test_the_command_writes_the_match_both_distances_and_a_frame_for_each_patch(setting, tmp_path):
    files = matching.explain_image(config(tmp_path))
    folder = tmp_path / "run" / "patch_match" / "bad_1"
    assert files == [folder / name for name in ("match.png", "distances.png", "patches.gif")]
    assert sorted(folder.iterdir()) == sorted(files)
    with Image.open(files[2]) as animation:
        assert animation.n_frames == 16


def test_the_broken_patch_is_the_worst_and_every_other_patch_finds_itself(setting):
    detector, data = setting
    with Image.open(data.samples[1].image_path) as image:
        grid = matching.match_grid(detector, image)
    assert np.unravel_index(grid.distance.argmax(), (4, 4)) == (2, 1)
    rows, columns = np.nonzero(grid.distance < 1e-6)
    assert len(rows) == 15
    assert (grid.place[rows, columns] == np.stack([rows, columns], axis=-1)).all()


def test_the_animation_can_be_left_out_and_the_folder_chosen(setting, tmp_path):
    changes = {"out": str(tmp_path / "here"), "animation": {"format": None}}
    files = matching.explain_image(config(tmp_path, **changes))
    assert [path.name for path in files] == ["match.png", "distances.png"]
    assert files[0].parent == tmp_path / "here"


def test_a_method_without_a_memory_is_refused(setting, tmp_path):
    setting[0].model = object()
    with pytest.raises(ConfigError, match="keeps no patches"):
        matching.explain_image(config(tmp_path))
