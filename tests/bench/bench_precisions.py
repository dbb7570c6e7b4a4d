"""What each precision of a file costs in accuracy, on the test images of finished PatchCore runs.

    python tests/bench/bench_precisions.py runs/patchcore/... [runs/patchcore/... ...]

For each run and each way to store and compute the network: image and pixel AUROC, decisions that
differ from those of the run, and size of the file; then the median milliseconds of one image, the
files in turn. Files hold resize, network, search, map and decision. "own memory"
ways change the network first and then fill the memory and set the threshold with its features, as
a run of its own; the others keep memory and threshold of the run.

bfloat16 is PyTorch with inputs, weights and outputs of all convolutions rounded to it, sums in
float32, as CPUs with AMX do it: it says what the rounding does, not how fast such a CPU would be.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from omegaconf import OmegaConf
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization import quantize_static as quantize
from torch import Tensor, nn

from src.commands.export import FORMATS, Exported
from src.data.images import read_sample
from src.detector import Detector, data_of
from src.evaluation.evaluator import Evaluator, build_evaluator
from src.evaluation.threshold import build_rule
from src.experiment import normal_scores
from src.models.build import build_model
from src.result import Prediction, Threshold
from src.saved_run import SavedRun
from src.training import Work, build_trainer, train

CALIBRATION = 64  # good training images
ROUNDS = 20
FIELDS = ("score", "alarm", "anomaly_map")
Run = Callable[[np.ndarray], Sequence[np.ndarray]]  # uint8 (B, h, w, 3) -> score, alarm, map


class Way(NamedTuple):
    """A detector in one precision."""

    run: Run
    threshold: Threshold
    size: int  # bytes of the file; 0: there is none


class Images(CalibrationDataReader):
    """Arrays one by one, as the calibration of ONNX Runtime takes them."""

    def __init__(self, name: str, arrays: Sequence[np.ndarray]) -> None:
        self.left: Iterator[dict[str, np.ndarray]] = iter([{name: a[None]} for a in arrays])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one."""
        return next(self.left, None)


def in_8_bits(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, ...) as int8 with a scale (C,) for each output channel."""
    scale = np.abs(weight).reshape(len(weight), -1).max(1) / 127
    scale[scale == 0] = 1
    shape = (-1,) + (1,) * (weight.ndim - 1)
    return np.rint(weight / scale.reshape(shape)).astype(np.int8), scale.astype(np.float32)


def store_in_8_bits(path: Path, target: Path) -> None:
    """Weights of the convolutions in int8, dequantised as the file is loaded; sums in float32."""
    model = onnx.load(path)
    constants = {one.name: one for one in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in constants]:
        name = node.input[1]
        values, scale = in_8_bits(numpy_helper.to_array(constants[name]))
        parts = [f"{name}.int8", f"{name}.scale"]
        for part, array in zip(parts, (values, scale), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(array, part))
        model.graph.initializer.remove(constants.pop(name))
        node.input[1] = f"{name}.float32"
        model.graph.node.insert(
            0, helper.make_node("DequantizeLinear", parts, [node.input[1]], axis=0)
        )
    onnx.save(model, target)


def quantise(path: Path, target: Path, images: Images) -> None:
    """Convolutions with 8-bit inputs and weights (QDQ, per channel), ranges from `images`.

    Weights have 7 bits (`reduce_range`): without VNNI, sums of two products overflow 16 bits.
    """
    nodes = [n.name for n in onnx.load(path).graph.node if n.op_type == "Conv"]
    quantize(
        path, target, images, per_channel=True, reduce_range=True, nodes_to_quantize=nodes,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def round_to_bfloat16(model: nn.Module) -> None:
    """Inputs, weights and outputs of its convolutions."""

    def rounded(values: Tensor) -> Tensor:
        return values.bfloat16().float()

    for module in [m for m in model.modules() if isinstance(m, nn.Conv2d)]:
        module.weight.data = rounded(module.weight.data)
        module.register_forward_pre_hook(lambda _, given: tuple(map(rounded, given)))
        module.register_forward_hook(lambda _, __, found: rounded(found))


class OnnxNetwork(nn.Module):
    """Feature maps of a network in a file, in place of a `FeatureExtractor`."""

    def __init__(self, path: Path, like: Any) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.channels, self.reductions = like.channels, like.reductions
        self.identity = f"{like.identity} from {path.name}"

    def forward(self, image: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> maps."""
        return [torch.from_numpy(m) for m in self.session.run(None, {"image": image.numpy()})]


def refilled(detector: Detector, change: Callable[[Any], nn.Module], folder: Path) -> Detector:
    """The run again with a changed network: memory, held-out scores and threshold of its own."""
    cfg = detector.config
    model: Any = build_model(cfg, detector.transform.size)
    model.backbone[0] = change(model.backbone[0])
    torch.manual_seed(cfg.seed)
    trainer = build_trainer(cfg, folder, [], single_pass=True)
    work = Work(cfg, SavedRun(folder), trainer, model, data_of(cfg))
    train(work, None)
    model.after_fit(work.data.ordered_train_dataloader())
    threshold = build_rule(cfg.threshold).fit(normal_scores(work))
    assert threshold is not None
    return Detector(
        model.eval(), detector.transform, threshold, cfg, detector.run, torch.device("cpu")
    )


def pytorch(detector: Detector) -> Way:
    """The detector as `src.predict` uses it."""

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        found = detector.detect(list(images))
        return [np.array([getattr(one, k) for one in found]) for k in FIELDS]

    return Way(run, detector.threshold, 0)


def written(detector: Detector, image: np.ndarray, path: Path) -> Path:
    """The detector as an ONNX file."""
    module = Exported(detector, image.shape[:2]).eval()
    two = torch.from_numpy(np.stack([image] * 2))
    FORMATS["onnx"][1](module, two, path, OmegaConf.create({"opset": 18}), {})
    return path


def from_file(path: Path, threshold: Threshold, precision: str = "float32") -> Iterator[tuple]:
    """The file in ONNX Runtime and, converted, in OpenVINO."""
    import openvino

    yield "ONNX Runtime", Way(FORMATS["onnx"][2](path), threshold, path.stat().st_size)
    for word, half in (("", False), (" float16", True))[: 1 + (precision == "float32")]:
        target = path.with_name(f"{path.stem}{word.strip()}.xml")
        openvino.save_model(openvino.Core().read_model(path), target, compress_to_fp16=half)
        size = sum(target.with_suffix(end).stat().st_size for end in (".xml", ".bin"))
        yield f"OpenVINO{word}", Way(FORMATS["openvino"][2](target), threshold, size)


def ways_of(detector: Detector, shots: Sequence[np.ndarray], folder: Path) -> Iterator[tuple]:
    """Name and `Way` of each precision; `shots`: good images (h, w, 3) to calibrate with."""
    transform, plain = detector.transform, written(detector, shots[0], folder / "float32.onnx")
    yield from ((f"float32, {n}", w) for n, w in from_file(plain, detector.threshold))
    store_in_8_bits(plain, folder / "weights8.onnx")
    for name, way in from_file(folder / "weights8.onnx", detector.threshold, "int8"):
        yield f"int8 weights, {name}", way
    path = folder / "static.onnx"
    quantise(plain, path, Images("image", shots))
    yield "int8, ONNX Runtime", next(from_file(path, detector.threshold, "int8"))[1]

    def static(network: Any) -> nn.Module:
        path, inputs = folder / "network.onnx", [transform(s).numpy() for s in shots]
        batch = torch.export.Dim("batch", min=1, max=4096)
        program = torch.onnx.export(
            network, (torch.from_numpy(np.stack(inputs[:2])),), dynamo=True, opset_version=18,
            input_names=["image"], dynamic_shapes=({0: batch},), verbose=False,
        )  # fmt: skip
        assert program is not None
        onnx.save(program.model_proto, path)
        quantise(path, folder / "network8.onnx", Images("image", inputs))
        return OnnxNetwork(folder / "network8.onnx", network)

    other = Detector.load(detector.run.directory, "cpu")
    round_to_bfloat16(other.model)
    yield "bfloat16 network, PyTorch", pytorch(other)
    own = refilled(detector, static, folder / "own")
    own.model.backbone[0] = detector.model.backbone[0]  # type: ignore[index,operator]
    path = written(own, shots[0], folder / "own.onnx")
    quantise(path, folder / "own8.onnx", Images("image", shots))
    way = next(from_file(folder / "own8.onnx", own.threshold, "int8"))[1]
    yield "int8, memory and threshold of int8 features, ONNX Runtime", way


def judged(
    name: str, way: Way, judge: Evaluator, batches: Sequence[tuple], truth: np.ndarray | None = None
) -> np.ndarray:
    """Print the row of a way; its decisions on the test images."""
    alarms: list[bool] = []
    for batch, images in batches:
        score, _, heat = way.run(images)[:3]
        judge.update(batch, Prediction(torch.tensor(score), torch.tensor(heat)))
        alarms += (score > way.threshold.image).tolist()
    metrics, found = judge.compute(way.threshold, None), np.array(alarms)
    differ = "" if truth is None else f"{(found != truth).sum()} of {len(found)}"
    aurocs = " | ".join(f"{metrics[f'test/{k}_auroc']:.4f}" for k in ("image", "pixel"))
    print(f"| {name} | {aurocs} | {differ} | {way.size / 1e6:.2f} |", flush=True)
    return found


def table(directory: Path) -> None:
    """Print the table of one run."""
    detector = Detector.load(directory, "cpu")
    cfg = detector.config
    data = data_of(cfg)
    shots = [np.asarray(read_sample(s)) for s in data.train_samples[:CALIBRATION]]
    print(f"\n{cfg.data.category}: {len(data.test_samples)} test images\n")
    print("| way | image AUROC | pixel AUROC | decisions that differ | MB |")
    print("|---|---|---|---|---|", flush=True)
    cfg.evaluation.bootstrap = 0
    batches = []
    for batch in data.test_dataloader():
        pictures = [read_sample(data.samples[row]) for row in batch["index"].tolist()]
        del batch["image"]
        batches.append((batch, np.stack([np.asarray(one) for one in pictures])))

    def judge() -> Evaluator:
        return build_evaluator(cfg, data.transform, data.samples)

    files: dict[str, Way] = {}
    with tempfile.TemporaryDirectory() as folder:
        truth = judged("PyTorch float32", pytorch(detector), judge(), batches)
        for name, way in ways_of(detector, shots, Path(folder)):
            judged(name, way, judge(), batches, truth)
            files |= {name: way} if way.size else {}
        taken: dict[str, list[float]] = {name: [] for name in files}
        for _ in range(ROUNDS):
            for name, way in files.items():
                began = time.perf_counter()
                way.run(shots[0][None])
                taken[name].append(1e3 * (time.perf_counter() - began))
        for name, values in taken.items():
            print(f"{name}: {np.median(values):.1f} ms an image")
    sys.stdout.flush()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        table(Path(argument))
