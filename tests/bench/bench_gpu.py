"""What one GPU makes of features, coreset, search, fit and training, against what it could.

    PYTHONPATH=. python tests/bench/bench_gpu.py [--peer-python .venv-peer/bin/python]

Two or three minutes on one card; writes the tables of docs/gpu.md. Without a card it says so, ends
with 0 and leaves docs/gpu.md alone.

Roofline: a large product (float32, TF32 and bfloat16) and a large copy give the card's peaks in the
same process; convolutions of float32 run in TF32, torch's default, products do not. Work that has F
floating-point operations and moves B bytes takes at least max(F / peak, B / copy); the share is
that bound over the measured median. F and B of coreset and search come from the models in
`coreset.py` and `nearest.py`; those of networks are counted: operations by torch's counter, bytes
as if every operator read its inputs from memory and wrote its outputs to it once. Fused kernels can
do with fewer, so a share above 1 is possible.

`syncs`: how often the host waited for the card in one call, by torch.cuda.set_sync_debug_mode.
Inputs are drawn and backbones have random weights where nothing depends on them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import src.composing
from src.data.datamodule import AnomalyDataModule
from src.data.transforms import ImageTransform
from src.detector import Detector
from src.experiment import run_experiment
from src.models.base import AnomalyModule
from src.models.build import build_model
from src.models.patchcore.coreset import _Search, greedy_coreset
from src.models.patchcore.nearest import nearest
from src.models.replay import Replay

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
RANDOM = "backbone.weights=random"
WAITED = "a synchronizing CUDA"  # what torch says of each wait
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


class Scale(NamedTuple):
    """Sizes of the work."""

    product: int  # side of the square matrices
    copy: int  # bytes
    repeats: int
    backbone: str
    side: int  # pixels
    batch: int
    coreset: tuple[int, int, int]  # rows, values, kept
    search: tuple[int, int, int]  # queries, rows, values
    demo: tuple[str, ...]  # words of the run on drawn parts
    methods: dict[str, tuple[tuple[str, ...], int]]  # words and batch of each trained method


FULL = Scale(
    8192, 1 << 30, 10, "wide_resnet50_2", 224, 32, (163_856, 128, 16_385), (12_544, 16_385, 1024),
    ("experiment=demo", "hardware=gpu", "hardware.num_workers=4"),
    {
        "U-Flow": (("model=uflow", RANDOM), 4),
        "CRN": (("model=crn",), 8),
        "HaloAE": (("model=haloae", RANDOM), 4),
    },
)  # fmt: skip
QUICK = Scale(
    256, 1 << 20, 1, "efficientnet_lite0", 64, 2, (2048, 32, 64), (256, 512, 32),
    ("experiment=demo", "data.synthetic.size=64", "data.synthetic.train=8",
     "data.synthetic.test_normal=4", "data.synthetic.test_defective=6", "transform.resize=64",
     "transform.crop=null", "model.target_dim=64", "evaluation.size=64", "evaluation.bootstrap=0",
     "report.max_images=0", "hardware.num_workers=0"),
    {
        "U-Flow": (("experiment=uflow_small", RANDOM, "transform.resize=[64,64]"), 2),
        "CRN": (("experiment=crn_demo",), 2),
        "HaloAE": (("experiment=haloae_small", RANDOM), 1),
    },
)  # fmt: skip


class Peak(NamedTuple):
    """What the card can do."""

    float32: float  # FLOP/s
    tf32: float
    bfloat16: float
    copy: float  # bytes/s, read and written


class Row(NamedTuple):
    """One piece of work."""

    name: str
    seconds: float
    flop: float
    bytes: float
    syncs: int
    kind: str = "float32"  # whose peak is the bound

    def shown(self, peak: Peak) -> str:
        """A line of the table."""
        arithmetic, memory = self.flop / getattr(peak, self.kind), self.bytes / peak.copy
        bound, kind = max((arithmetic, "arithmetic"), (memory, "memory"))
        return (
            f"| {self.name} | {1e3 * self.seconds:.2f} | {self.flop / 1e9:.1f} | "
            f"{self.bytes / 1e9:.2f} | {1e3 * bound:.2f} ({kind}) | {bound / self.seconds:.2f} | "
            f"{self.syncs} |"
        )


# --- measuring -----------------------------------------------------------------------------------


class Traffic(TorchDispatchMode):
    """Bytes that operators read and write, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            parts = tree_leaves((args, kwargs, found))
            self.bytes += sum(x.numel() * x.element_size() for x in parts if isinstance(x, Tensor))
        return found


def wait(device: torch.device) -> None:
    """Until the card has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, after two that do not count."""
    taken = []
    for turn in range(repeats + min(2, repeats)):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        if turn >= min(2, repeats):
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def counted(call: Callable[[], object]) -> tuple[float, float]:
    """FLOP and bytes of a call."""
    with FlopCounterMode(display=False) as operations, Traffic() as traffic:
        call()
    return float(operations.get_total_flops()), float(traffic.bytes)


@contextlib.contextmanager
def syncs_counted(device: torch.device) -> Iterator[list[int]]:
    """How often the host waits for the card inside; the list holds the number afterwards."""
    found: list[int] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            found.append(sum(WAITED in str(warning.message) for warning in said))


def measured(
    name: str, call: Callable[[], object], device: torch.device, repeats: int,
    cost: tuple[float, float] | None = None, *, kind: str = "float32",
) -> Row:  # fmt: skip
    """A row of the table; without a cost of the model, operations and bytes are counted."""
    seconds = seconds_of(call, device, repeats)
    with syncs_counted(device) as syncs:
        call()
    return Row(name, seconds, *(cost or counted(call)), syncs[0], kind)


def peaks(scale: Scale, device: torch.device) -> Peak:
    """Of a square product and of a copy."""
    left = torch.randn(scale.product, scale.product, device=device)
    small, flop = left.bfloat16(), 2.0 * scale.product**3
    single = flop / seconds_of(lambda: left @ left, device, scale.repeats)
    half = flop / seconds_of(lambda: small @ small, device, scale.repeats)
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = True
    tf32 = flop / seconds_of(lambda: left @ left, device, scale.repeats)
    matmul.allow_tf32 = False
    source = torch.empty(scale.copy, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = seconds_of(lambda: target.copy_(source), device, scale.repeats)
    return Peak(single, tf32, half, 2.0 * scale.copy / moved)


# --- the pieces ----------------------------------------------------------------------------------


def composed(*words: str) -> DictConfig:
    """The config of a run with random weights."""
    with initialize_config_dir(version_base="1.3", config_dir=str(src.composing.CONF)):
        return compose("run", overrides=list(words))


def features(scale: Scale, device: torch.device) -> Row:
    """Of the frozen network."""
    cfg = composed("model=patchcore", "data=synthetic", f"backbone={scale.backbone}",
                   RANDOM)  # fmt: skip
    network: Any = build_model(cfg, (scale.side, scale.side)).to(device).backbone
    image = torch.randn(scale.batch, 3, scale.side, scale.side, device=device)
    name = f"features of {scale.backbone}, {scale.batch} images of {scale.side} px"
    return measured(name, lambda: network(image), device, scale.repeats, kind="tf32")


def coreset(scale: Scale, device: torch.device) -> Row:
    """The greedy selection; FLOP and bytes of the products that it really makes."""
    rows, dim, kept = scale.coreset
    points = torch.randn(rows, dim, device=device)
    flop = moved = 0.0

    def meet(search: _Search, some: Tensor, first: int) -> None:
        nonlocal flop, moved
        n, picks = len(some), search.count - first
        flop += 2.0 * n * picks * dim
        moved += 4.0 * n * (dim + 5) + 8.0 * n * picks
        plain(search, some, first)

    def select() -> object:
        return greedy_coreset(points, kept, start="official", seed=0, block=768, distances=False)

    plain = _Search._meet
    with mock.patch.object(_Search, "_meet", meet):
        select()
    name = f"coreset, {kept:,} of {rows:,} rows of {dim} values"
    return measured(name, select, device, min(3, scale.repeats), (flop, moved))


def search(scale: Scale, device: torch.device) -> Row:
    """The nearest rows of the patches of 16 images."""
    queries, rows, dim = scale.search
    asked, bank = (torch.randn(n, dim, device=device) for n in (queries, rows))
    cost = 2.0 * queries * rows * dim, 4.0 * (queries + rows) * dim + 8.0 * queries * rows
    name = f"search, {queries:,} patches in {rows:,} rows of {dim} values"
    return measured(name, lambda: nearest(asked, bank, 1), device, scale.repeats, cost)


def step(scale: Scale, device: torch.device, method: str) -> Row:
    """One optimizer step of a trained method with its own loss, as hardware=gpu runs it."""
    words, batch = scale.methods[method]
    cfg = composed("data=synthetic", *words)
    height, width = ImageTransform(**cfg.transform).size
    module: Any = build_model(cfg, (height, width)).to(device).train()
    module._steps = 1000  # of HaloAE's curriculum
    learnt = [value for value in module.parameters() if value.requires_grad]
    adam = torch.optim.Adam(learnt, lr=1e-5, fused=device.type == "cuda")
    shown = {"image": torch.randn(batch, 3, height, width, device=device),
             "index": torch.arange(batch)}  # fmt: skip

    def one() -> None:
        adam.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = module.training_step(shown, 0)
        loss.backward()
        adam.step()

    name = f"{method}, a step of {batch} images of {height} px"
    return measured(name, one, device, scale.repeats, kind="bfloat16")


def whole_fit(scale: Scale, folder: Path, device: torch.device) -> tuple[Path, str]:
    """PatchCore on drawn parts: the run, and a sentence on it."""
    place = "hardware.accelerator=cpu" if device.type == "cpu" else "hardware.accelerator=gpu"
    words = (*scale.demo, place, f"runs_dir={folder}", "report.enabled=false")
    with contextlib.redirect_stdout(io.StringIO()):
        run, again = (run_experiment(composed(*words, f"seed={seed}")).run for seed in (0, 1))
        with syncs_counted(device):  # a run writes its warnings into its own log
            counted = run_experiment(composed(*words, "seed=2")).run
    waits = (counted.directory / "log.txt").read_text().count(WAITED)
    facts, second = (json.loads((one.directory / "fit.json").read_text()) for one in (run, again))
    metrics = run.metrics()
    return run.directory, (
        f"PatchCore on drawn gears, fit with cross-calibration: {facts['seconds']:.2f} s, the next "
        f"one in this process {second['seconds']:.2f} s, {second['peak_memory_mb']:.0f} MB, image "
        f"AUROC {metrics['test/image_auroc']:.3f}, {metrics['speed/latency_p50_ms']:.1f} ms an "
        f"image; {waits} waits in a whole run"
    )


def peer(python: str, scale: Scale, device: torch.device) -> str:
    """The same parts by anomalib on the same card."""
    from tests.bench.bench_patchcore_peers import save_weights

    data = AnomalyDataModule(composed(*scale.demo))
    data.setup()
    root = data.train_samples[0].image_path.parents[3]  # root/gear/train/good/000.png
    with tempfile.TemporaryDirectory() as name:
        weights = Path(name) / "weights.pt"
        save_weights("efficientnet_lite0", weights)
        command = [
            python, str(Path(__file__).parent / "peers" / "anomalib_patchcore.py"), "--root",
            str(root), "--category", "gear", "--weights", str(weights), "--backbone",
            "tf_efficientnet_lite0", "--layers", "blocks.2", "blocks.4", "--mean", *["0.5"] * 3,
            "--std", *["0.5"] * 3, "--ratio", "0.1", "--batch-size", "8",
            "--accelerator", "gpu" if device.type == "cuda" else "cpu",
        ]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    said = json.loads(done.stdout.splitlines()[-1])
    return (
        f"anomalib on the same: fit {said['fit']['wall_s']:.2f} s without calibration, of it the "
        f"coreset {said['selection']['wall_s']:.2f} s; "
        f"image AUROC {said['test']['image_AUROC']:.3f}"
    )


# --- inference at a fixed size -------------------------------------------------------------------


def fixed_size(run: Path, device: torch.device, repeats: int) -> list[str]:
    """Whether torch.compile and a CUDA graph pay for one image and for sixteen."""
    model = Detector.load(run, str(device)).model
    side, said = model.image_size, []
    backend = "inductor" if device.type == "cuda" else "eager"  # on a CPU: only that it runs
    for batch in (1, 16):
        image = torch.randn(batch, 3, *side, device=device)
        with torch.inference_mode():
            expected = model(image).anomaly_map
            plain = seconds_of(lambda image=image: model(image), device, repeats)
            ways: dict[str, Callable[[], Callable[[], Any]]] = {
                "torch.compile": lambda image=image: compiled(model, image, backend)
            }
            if device.type == "cuda":
                ways["CUDA graph"] = lambda image=image: replayed(model, image)
            for name, make in ways.items():
                said.append(f"| {name}, {batch} at once | {1e3 * plain:.2f} | "
                            f"{faster(make, expected, plain, device, repeats)} |")  # fmt: skip
    return said


def faster(
    make: Callable[[], Callable[[], Any]], expected: Tensor, plain: float, device: torch.device,
    repeats: int,
) -> str:  # fmt: skip
    """Milliseconds, largest difference of maps, verdict; or why it does not work."""
    try:
        call = make()
        difference = float((call().anomaly_map - expected).abs().max())
        taken = seconds_of(call, device, repeats)
    except Exception as error:  # a compiler may fail in any way; the table says how
        return f"- | - | does not work: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    verdict = "pays" if plain / taken > 1.1 else "does not pay"
    return f"{1e3 * taken:.2f} | {difference:.1e} | {plain / taken:.2f} times: {verdict}"


def compiled(model: AnomalyModule, image: Tensor, backend: str) -> Callable[[], Any]:
    """The compiled model on one input."""
    quick = torch.compile(model, backend=backend, dynamic=False)
    return lambda: quick(image)


def replayed(model: AnomalyModule, image: Tensor) -> Callable[[], Any]:
    """The kernels of one input started as one, as `src.predict` has it."""
    quick = Replay(model)
    return lambda: quick(image)


# --- the page ------------------------------------------------------------------------------------


def report(device: torch.device, scale: Scale, peer_python: str | None) -> str:
    """All tables as Markdown; every line is printed as it comes."""
    said: list[str] = []

    def say(*lines: str) -> None:
        said.extend(lines)
        print(*lines, sep="\n", flush=True)

    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = peaks(scale, device)
    say(
        f"{card}, torch {torch.__version__}. Peaks: {peak.float32 / 1e12:.2f} TFLOP/s in float32, "
        f"{peak.tf32 / 1e12:.2f} in TF32, {peak.bfloat16 / 1e12:.2f} in bfloat16, copies "
        f"{peak.copy / 1e9:.0f} GB/s.", "",
        "| work | ms | GFLOP | GB | bound, ms | share of the bound | syncs |",
        "|---|---|---|---|---|---|---|",
    )  # fmt: skip
    pieces = [features, coreset, search]
    rows = [lambda piece=piece: piece(scale, device) for piece in pieces]
    rows += [lambda method=method: step(scale, device, method) for method in scale.methods]
    for row in rows:
        say(row().shown(peak))
    with tempfile.TemporaryDirectory() as name:
        run, sentence = whole_fit(scale, Path(name), device)
        say("", sentence + ".")
        if peer_python:
            say("", peer(peer_python, scale, device) + ".")
        say("", "| inference at a fixed size | as it is, ms | ms | largest difference | pays? |",
            "|---|---|---|---|---|", *fixed_size(run, device, scale.repeats))  # fmt: skip
    return "\n".join(said)


def write_page(text: str, page: Path = PAGE) -> None:
    """Put the tables in the place of those before."""
    head, rest = page.read_text().split(BEGIN)
    page.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def main(words: list[str]) -> None:
    """Measure what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="Python of an environment with anomalib")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "There is no GPU that torch can use: nothing is measured, docs/gpu.md stays as it is."
        )
        return
    os.environ.setdefault("WANDB_MODE", "offline")
    logging.disable(logging.INFO)
    device = torch.device(given.device)
    began = time.perf_counter()
    text = report(device, QUICK if given.quick else FULL, given.peer_python)
    print(f"\n{time.perf_counter() - began:.0f} s")
    if device.type == "cuda" and not given.quick:
        write_page(text)


if __name__ == "__main__":
    main(sys.argv[1:])
