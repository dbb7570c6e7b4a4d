"""A detector as one file, accepted only when it decides like the original on real images."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from src.data.datamodule import AnomalyDataModule
from src.data.images import read_sample
from src.data.record import with_data_at
from src.data.samples import Sample
from src.deployment.fixed_input import FixedInput
from src.deployment.parity import Outputs, Parity, Runner, check_parity
from src.detector import Detector
from src.errors import ConfigError, did_you_mean
from src.files import atomic, write_text

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
OUTPUT_NAMES = ("score", "alarm", "anomaly_map", "mask")


class Exported(nn.Module):
    """Camera image to decision: pre-processing, model and threshold in one graph."""

    def __init__(self, detector: Detector, camera_size: tuple[int, int]) -> None:
        super().__init__()
        self.prepare = FixedInput(detector.transform, camera_size)
        self.model = detector.model.export_form()
        self.image_threshold = float(detector.threshold.image)
        self.pixel_threshold = float(detector.threshold.pixel)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """uint8 (B, h, w, 3) -> score (B,), alarm (B,), anomaly_map (B, H, W), mask (B, H, W)."""
        prediction = self.model(self.prepare(image))
        score, anomaly_map = prediction[0], prediction[1]
        alarm, mask = score > self.image_threshold, anomaly_map > self.pixel_threshold
        return score, alarm, anomaly_map, mask


def export_run(cfg: DictConfig) -> Parity:
    """Export `cfg.run`; the parity report. Nothing is written when parity fails.

    Raises:
        ConfigError: unknown format, or a rule that cannot live in a graph.
        ParityError: the exported file decides otherwise than PyTorch.
    """
    if cfg.format not in SUFFIXES:
        raise ConfigError(
            "Unknown format.", found=cfg.format, do=did_you_mean(cfg.format, SUFFIXES)
        )
    detector = Detector.load(Path(cfg.run), "cpu")
    if detector.threshold.rule == "nfa":
        raise ConfigError(
            "The a-contrario threshold builds a tree of regions, which no graph format can hold.",
            found="the run was made with threshold=nfa",
            do="run again with threshold=conformal (the model is the same) and export that run",
        )
    samples = _real_images(with_data_at(detector.config, cfg.data.root), cfg.parity.images)
    size = tuple(cfg.camera_size or read_sample(samples[0]).size[::-1])
    if min(size) < 8:
        raise ConfigError(
            "The camera size is too small.",
            found=f"{size[0]} x {size[1]}",
            do="give camera_size=[height,width] in pixels",
        )
    images = np.stack([_camera_image(sample, size) for sample in samples])
    target = Path(cfg.out) if cfg.out else detector.directory / "export" / "detector"
    target = target.with_suffix(SUFFIXES[cfg.format])
    module = Exported(detector, size).eval()
    with atomic(target) as partial:
        _WRITERS[cfg.format](module, images[:2], partial, cfg, _facts(detector, size))
        parity = check_parity(
            images, _torch_runner(detector), _RUNNERS[cfg.format](partial),
            threshold=detector.threshold.image, tolerance=cfg.parity.tolerance,
            repeats=cfg.parity.repeats,
        )  # fmt: skip
    write_text(target.with_suffix(".parity.json"), json.dumps(asdict(parity), indent=2) + "\n")
    Console().print(
        parity.table(cfg.format), f"Wrote {target} ({target.stat().st_size / 1e6:.1f} MB)"
    )
    return parity


# --- writing ---------------------------------------------------------------------------------


def _write_onnx(
    module: nn.Module, images: np.ndarray, path: Path, cfg: DictConfig, facts: dict[str, str]
) -> None:
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (torch.from_numpy(images),), dynamo=True, opset_version=cfg.opset,
            input_names=["image"], output_names=list(OUTPUT_NAMES),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},), verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)


def _write_torch(
    module: nn.Module, images: np.ndarray, path: Path, cfg: DictConfig, facts: dict[str, str]
) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(
            module, (torch.from_numpy(images),), dynamic_shapes=({0: batch},)
        )
    with path.open("wb") as stream:
        torch.export.save(program, stream, extra_files=dict(facts))


def _facts(detector: Detector, size: tuple[int, int]) -> dict[str, str]:
    """What the file says of itself."""
    white = 2 ** (detector.config.data.get("bit_depth") or 16) - 1
    return {
        "goodparts.run": detector.directory.name,
        "goodparts.method": type(detector.model).__name__,
        "goodparts.input": f"image: uint8 RGB (batch, {size[0]}, {size[1]}, 3)",
        "goodparts.deep_grey": f"scale {white} to 255, then repeat over R, G and B",
        "goodparts.threshold": json.dumps(detector.threshold.to_json()),
    }


# --- running both sides ------------------------------------------------------------------------


def _torch_runner(detector: Detector) -> Runner:
    """The reference: the detector as `src.predict` uses it, resize by Pillow."""

    def run(images: np.ndarray) -> Outputs:
        found = detector.detect(list(images))
        return Outputs(
            np.array([one.score for one in found], dtype=np.float32),
            np.array([one.alarm for one in found]),
            np.stack([one.anomaly_map for one in found]),
        )

    return run


def _onnx_runner(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> Outputs:
        score, alarm, anomaly_map, _ = session.run(None, {"image": images})
        return Outputs(score, alarm, anomaly_map)

    return run


def _export_runner(path: Path) -> Runner:
    with path.open("rb") as stream:
        program = torch.export.load(stream).module()

    def run(images: np.ndarray) -> Outputs:
        with torch.no_grad():
            score, alarm, anomaly_map, _ = program(torch.from_numpy(images))
        return Outputs(score.numpy(), alarm.numpy(), anomaly_map.numpy())

    return run


_WRITERS = {"onnx": _write_onnx, "torch": _write_torch}
_RUNNERS = {"onnx": _onnx_runner, "torch": _export_runner}


# --- real images -------------------------------------------------------------------------------


def _real_images(config: DictConfig, count: int) -> list[Sample]:
    """Test images of the run, both classes in turn, then training images."""
    data = AnomalyDataModule(config)
    data.prepare_data()
    data.setup()
    by_label = sorted(data.test_samples, key=lambda sample: sample.label)
    half = max(1, count // 2)
    chosen = [*by_label[:half], *by_label[-half:], *data.train_samples]
    return list(dict.fromkeys(chosen))[:count]


def _camera_image(sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """The image as the camera would give it: uint8 (h, w, 3) of the camera's size."""
    image, wide = read_sample(sample), size[::-1]
    return np.asarray(image if image.size == wide else image.resize(wide))
