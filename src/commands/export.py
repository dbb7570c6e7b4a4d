"""A detector as one file, accepted only when it decides like the original on real images."""

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from src.data.images import read_sample
from src.data.record import with_data_at
from src.deployment.fixed_input import FixedInput
from src.detector import Detection, Detector, data_of
from src.errors import ConfigError, GoodpartsError
from src.files import write_text
from src.result import Prediction


class ParityError(GoodpartsError):
    """The exported model differs from the original."""


class Outputs(NamedTuple):
    """What one side says of a batch."""

    score: np.ndarray  # (B,)
    alarm: np.ndarray  # (B,) bool
    anomaly_map: np.ndarray  # (B, H, W)
    mask: np.ndarray  # (B, H, W) bool

    @classmethod
    def of(cls, found: Sequence[Detection]) -> Self:
        """What a detector says."""
        score, alarm, heat, mask = zip(*(one[:4] for one in found), strict=True)
        return cls(np.array(score, np.float32), np.array(alarm), np.stack(heat), np.stack(mask))


Runner = Callable[[np.ndarray], Outputs]
File = Callable[[np.ndarray], Sequence[np.ndarray]]  # images -> what the file gives


@dataclass(frozen=True, slots=True)
class Parity:
    """The comparison on real images; errors in raw units, times for one image from the camera."""

    images: int
    flips: int  # decisions that differ
    score_error: float  # largest |difference|
    map_error: float
    mask_error: float  # share of the masks' pixels that differ
    spread: float  # largest minus smallest score, what errors are measured by
    tolerance: float  # allowed error / spread
    torch_ms_p50: float
    torch_ms_p95: float
    exported_ms_p50: float
    exported_ms_p95: float

    def table(self, name: str) -> Table:
        """The comparison for the console."""
        table = Table("", "PyTorch", name, title=f"parity on {self.images} real images")
        table.add_row("label flips", "", str(self.flips))
        table.add_row("max score error", "", f"{self.score_error:.2e} of spread {self.spread:.3g}")
        table.add_row("max map error", "", f"{self.map_error:.2e}")
        table.add_row("mask pixels that differ", "", f"{self.mask_error:.2e} of all")
        for quantile in ("p50", "p95"):
            times = (getattr(self, f"{side}_ms_{quantile}") for side in ("torch", "exported"))
            table.add_row(f"ms per image {quantile}", *(f"{ms:.1f}" for ms in times))
        return table


class Exported(nn.Module):
    """Camera image to decision in one graph; with an own mask: to what `completed` takes."""

    def __init__(self, detector: Detector, camera_size: tuple[int, int]) -> None:
        super().__init__()
        self.prepare = FixedInput(detector.transform, camera_size)
        self.model = detector.model.export_form()
        self.image_threshold = float(detector.threshold.image)
        self.pixel_threshold = float(detector.threshold.pixel)
        self.own_mask = detector.threshold.own_mask
        self.outputs = ["score", "alarm", "anomaly_map", "mask"]
        if self.own_mask:
            black = self.prepare(torch.zeros(1, *camera_size, 3, dtype=torch.uint8))
            self.outputs[1:] = ["anomaly_map", *self.model.traced(black).extra]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, h, w, 3) -> (B,) and (B, H, W) as named in `outputs`; evidence (B, h', w')."""
        score, anomaly_map, _, extra = self.model.traced(self.prepare(image))
        if self.own_mask:
            return score, anomaly_map, *extra.values()
        alarm, mask = score > self.image_threshold, anomaly_map > self.pixel_threshold
        return score, alarm, anomaly_map, mask


def export_run(cfg: DictConfig) -> Parity:
    """Export `cfg.run`; the parity report. Nothing is written when parity fails (ParityError)."""
    detector = Detector.load(Path(cfg.run), "cpu")
    ending, write, runner, precisions = FORMATS[cfg.format]
    if cfg.precision not in precisions:
        what = f"format={cfg.format} has no such precision."
        do = f"choose one of {', '.join(precisions)}, or another format"
        raise ConfigError(what, found=f"precision={cfg.precision}", do=do)
    size, images = _camera_images(detector, cfg)
    target = Path(cfg.out or detector.run.directory / "export" / "detector").with_suffix(ending)

    def original(images: np.ndarray) -> Outputs:
        """The detector as `src.predict` uses it, resize by Pillow."""
        return Outputs.of(detector.detect(list(images)))

    module, batch = Exported(detector, size).eval(), torch.from_numpy(images[:2])
    facts = _facts(detector, size) | {"precision": cfg.precision}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export.") as folder:
        partial = Path(folder) / target.name
        write(module, batch, partial, cfg, facts)
        exported = completed(detector, module.outputs, runner(partial))
        limit = np.inf if module.own_mask else detector.threshold.image
        limits = limit, cfg.parity.tolerance, cfg.parity.repeats
        parity = check_parity(images, original, exported, *limits)
        written = sorted(Path(folder).glob(f"{target.stem}.*"))  # .bin before its .xml
        for file in written:
            file.replace(target.with_suffix(file.suffix))
    write_text(target.with_suffix(".parity.json"), json.dumps(asdict(parity), indent=2) + "\n")
    total = sum(target.with_suffix(file.suffix).stat().st_size for file in written)
    table = parity.table(f"{cfg.format} {cfg.precision}")
    Console().print(table, f"Wrote {target} ({total / 1e6:.1f} MB)")
    return parity


def completed(detector: Detector, names: Sequence[str], run: File) -> Runner:
    """What a file says in the end: with `AnomalyModule.completed`, if there is an own mask."""

    def finish(images: np.ndarray) -> Outputs:
        found = [np.array(one) for one in run(images)]
        if not detector.threshold.own_mask:
            return Outputs(*found)
        score, heat, *rest = map(torch.from_numpy, found)
        given = Prediction(score, heat, None, dict(zip(names[2:], rest, strict=True)))
        return Outputs.of(detector.decide(detector.model.completed(given)))

    return finish


def _camera_images(detector: Detector, cfg: DictConfig) -> tuple[tuple[int, int], np.ndarray]:
    """Size (h, w) of the camera, and images (N, h, w, 3) uint8 of the run as it would give them."""
    data = data_of(with_data_at(detector.config, cfg.data.root))
    by_label = sorted(data.test_samples, key=lambda sample: sample.label)
    half = max(1, cfg.parity.images // 2)
    both = [*by_label[:half], *by_label[-half:], *data.train_samples]
    shots = [read_sample(sample) for sample in list(dict.fromkeys(both))[: cfg.parity.images]]
    height, width = map(int, cfg.camera_size or shots[0].size[::-1])
    fitted = (s if s.size == (width, height) else s.resize((width, height)) for s in shots)
    return (height, width), np.stack([np.asarray(shot) for shot in fitted])


def _write_onnx(
    module: Exported, images: Tensor, path: Path, cfg: DictConfig, facts: Mapping[str, str]
) -> None:
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.onnx.export(
            module, (images,), dynamo=True, opset_version=cfg.opset,
            input_names=["image"], output_names=module.outputs,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},), verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)


def _write_openvino(
    module: Exported, images: Tensor, path: Path, cfg: DictConfig, facts: Mapping[str, str]
) -> None:
    """`path` (.xml) and its weights beside it (.bin), converted from the ONNX graph."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.onnx"
        _write_onnx(module, images, graph, cfg, facts)
        model = openvino.Core().read_model(graph)
        for key, value in facts.items():
            model.set_rt_info(value, ["goodparts", key.removeprefix("goodparts.")])
        openvino.save_model(model, path, compress_to_fp16=cfg.precision == "float16")


def _write_torch(
    module: Exported, images: Tensor, path: Path, cfg: DictConfig, facts: Mapping[str, str]
) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(module, (images,), dynamic_shapes=({0: batch},))
    with path.open("wb") as stream:
        torch.export.save(program, stream, extra_files=dict(facts))


def _onnx_runner(path: Path) -> File:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})


def _openvino_runner(path: Path) -> File:
    import openvino

    # f32: by default CPUs with bfloat16 round to 8 bits, where the resize needs 24
    exact = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(path, "CPU", exact)
    return lambda images: list(model([images]).values())


def _torch_runner(path: Path) -> File:
    with path.open("rb") as stream:
        program = torch.export.load(stream).module()

    return lambda images: [one.detach().numpy() for one in program(torch.from_numpy(images))]


#: Ending, writer, runner and precisions of each format.
FORMATS = {
    "onnx": (".onnx", _write_onnx, _onnx_runner, ("float32",)),
    "openvino": (".xml", _write_openvino, _openvino_runner, ("float32", "float16")),
    "torch": (".pt2", _write_torch, _torch_runner, ("float32",)),
}


def _facts(detector: Detector, size: tuple[int, int]) -> dict[str, str]:
    """What the file says of itself."""
    white = 2 ** (detector.config.data.get("bit_depth") or 16) - 1
    return {
        "goodparts.run": detector.run.directory.name,
        "goodparts.method": type(detector.model).__name__,
        "goodparts.input": f"image: uint8 RGB (batch, {size[0]}, {size[1]}, 3)",
        "goodparts.deep_grey": f"scale {white} to 255, then repeat over R, G and B",
        "goodparts.threshold": json.dumps(detector.threshold.to_json()),
    } | {f"goodparts.{k}": json.dumps(v) for k, v in detector.model.completion_facts().items()}


def check_parity(
    images: np.ndarray, original: Runner, exported: Runner,
    threshold: float, tolerance: float, repeats: int,
) -> Parity:  # fmt: skip
    """Compare both sides on images (N, h, w, 3), one by one and as a batch; else a ParityError."""
    truth, batched = original(images), exported(images)
    single = [exported(images[i : i + 1]) for i in range(len(images))]
    singly = Outputs(*(np.concatenate(parts) for parts in zip(*single, strict=True)))
    sides = (batched, singly)
    reach = [threshold] if np.isfinite(threshold) else []
    spread = float(np.ptp(np.append(truth.score, reach))) or float(np.abs(truth.score).max()) or 1.0

    def error(a: np.ndarray, b: np.ndarray, over: Callable[..., float] = np.max) -> float:
        return float(over(np.abs(a.astype(float) - b))) if a.shape == b.shape else np.inf

    def milliseconds(run: Runner) -> tuple[float, float]:
        """The p50 and p95 of `repeats` calls with one image after two that warm up."""
        taken = []
        for count in range(repeats + 2):
            one = images[count % len(images)][None]
            began = time.perf_counter()
            run(one)
            taken.append(1e3 * (time.perf_counter() - began))
        return float(np.percentile(taken[2:], 50)), float(np.percentile(taken[2:], 95))

    flips = max(int((truth.alarm != side.alarm).sum()) for side in sides)
    of_score = max(error(truth.score, side.score) for side in sides)
    of_map = max(error(truth.anomaly_map, side.anomaly_map) for side in sides)
    of_mask = max(error(truth.mask, side.mask, np.mean) for side in sides)
    if flips or not max(of_score, of_map) <= tolerance * spread or of_mask > tolerance:
        raise ParityError(
            "The exported model does not say the same as PyTorch; nothing was written.",
            found=f"{flips} of {len(images)} decisions flip, largest error "
            f"{max(of_score, of_map):.3g} (allowed {tolerance * spread:.3g}), {of_mask:.2%} of the "
            f"mask pixels differ (allowed {tolerance:.1%})",
            do="report this with the run's config.yaml; a larger parity.tolerance only hides it",
        )
    times = *milliseconds(original), *milliseconds(exported)
    return Parity(len(images), flips, of_score, of_map, of_mask, spread, tolerance, *times)
