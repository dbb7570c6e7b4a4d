"""Whole PatchCore runs, fit and evaluation, ours against anomalib 2.7.

    make bench-peers                                  (needs MVTEC_AD_ROOT)
    python tests/bench/bench_patchcore_peers.py --peer-python .venv-peer/bin/python

Each side is a process of its own, from start to exit, on the same images, machine, threads and
backbone weights, with the same features (all channels of two layers, 3 x 3 means, 224 px crop of
256). Ours is the run that users start, with its calibration, intervals, AUPRO, curves and run
folder, but like the peer's without pictures of images and report; anomalib computes two AUROCs.
For 10 % anomalib's greedy loop would take half an hour: its picks cost the same each, so the 1 %
loop is multiplied and a bank ten times as large is searched; the line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

CASES = {
    "efficientnet_lite0": ("tf_efficientnet_lite0", ["blocks.2", "blocks.4"], 0.5, 0.5),
    "resnet18": ("resnet18", ["layer2", "layer3"], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
BATCH = 8  # both sides


def run_ours(backbone: str, root: Path, category: str, ratio: float, folder: Path) -> dict:
    """Wall and CPU seconds, peak memory and AUROCs of `python -m src.run`."""
    command = [
        sys.executable, "-m", "src.run", "model=patchcore", f"backbone={backbone}", "data=mvtec",
        f"data.category={category}", f"data.root={root}", "model.embedding=concat",
        f"model.coreset.ratio={ratio}", f"data.batch_size={BATCH}", "report.enabled=false",
        "report.max_images=0",
        "hardware=cpu", f"runs_dir={folder}",
    ]  # fmt: skip
    facts = measure(command)
    (metrics,) = folder.glob("**/metrics.json")
    found: dict[str, float] = json.loads(metrics.read_text())
    return facts | {"image": found["test/image_auroc"], "pixel": found["test/pixel_auroc"]}


def run_anomalib(python: str, backbone: str, root: Path, category: str, folder: Path) -> dict:
    """The same of anomalib at 1 %, and what 10 % would take."""
    name, layers, mean, std = CASES[backbone]
    weights = folder / "weights.pt"
    save_weights(backbone, weights)
    command = [
        python, str(Path(__file__).parent / "peers" / "anomalib_patchcore.py"), "--root", root,
        "--category", category, "--weights", weights, "--backbone", name, "--layers", *layers,
        "--mean", *triple(mean), "--std", *triple(std), "--ratio", 0.01, "--batch-size", BATCH,
    ]  # fmt: skip
    facts = measure([str(part) for part in command])
    said: dict[str, Any] = json.loads(facts.pop("stdout").splitlines()[-1])
    if said["missing"]:
        raise SystemExit(f"the peer did not get all weights: {said['missing']}")
    wall = facts["wall_s"] - said["large_wall_s"]
    extra = {key: 9 * said["selection"][key] for key in ("wall_s", "cpu_s")}
    search = {key: said["test_large"][key] - said["test"][key] for key in ("wall_s", "cpu_s")}
    image, pixel = said["test"]["image_AUROC"], said["test"]["pixel_AUROC"]
    return {
        "wall_s": wall, "cpu_s": said["cpu_s"], "peak_mb": facts["peak_mb"],
        "image": image, "pixel": pixel, "selection_s": said["selection"]["cpu_s"],
        "wall_10": wall + extra["wall_s"] + search["wall_s"],
        "cpu_10": said["cpu_s"] + extra["cpu_s"] + search["cpu_s"],
    }  # fmt: skip


def measure(command: list[str]) -> dict[str, Any]:
    """Run a process from start to exit: wall and CPU seconds, peak resident memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    # A process between this one and the command keeps the peaks of several commands apart.
    inner = (
        "import json, resource, subprocess, sys;"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True);"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024;"
        "print(json.dumps([done.returncode, peak, done.stdout]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", inner, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, peak, stdout = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{' '.join(command[:4])} ended with {code}:\n{stdout}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb": peak, "stdout": stdout}


def save_weights(backbone: str, path: Path) -> None:
    """The weights our run finds, under timm's names, for the peer."""
    import timm

    from src.backbones.weights import find_weights

    name = CASES[backbone][0]
    tag = {"resnet18": "resnet18.tv_in1k"}.get(name, name)
    template = timm.create_model(name, pretrained=False)
    torch.save(find_weights(tag, template)[0], path)


def triple(value: float | tuple[float, ...]) -> tuple[float, ...]:
    """One number a channel."""
    return value if isinstance(value, tuple) else (value, value, value)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--backbones", nargs="+", default=list(CASES))
    args = parser.parse_args()
    found = os.environ.get("MVTEC_AD_ROOT")
    if not found:
        raise SystemExit("set MVTEC_AD_ROOT to a folder of MVTec AD categories")
    for backbone in args.backbones:
        compare(backbone, Path(found), args.category, args.peer_python)


def compare(backbone: str, root: Path, category: str, python: str) -> None:
    """Ours at 1 % and 10 %, the peer at 1 %, in turn."""
    print(
        f"\n{backbone}, {category}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads", flush=True
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = run_ours(backbone, root, category, 0.01, folder / "one")
        peer = run_anomalib(python, backbone, root, category, folder)
        ten = run_ours(backbone, root, category, 0.1, folder / "ten")
    again = peer | {"wall_s": peer["wall_10"], "cpu_s": peer["cpu_10"]}
    for title, facts in (
        ("ours      1 %", one), ("anomalib  1 %", peer), ("ours     10 %", ten),
        ("anomalib 10 % (multiplied)", again),
    ):  # fmt: skip
        print(
            f"  {title:28} {facts['wall_s']:8.1f} s   {facts['cpu_s']:8.1f} CPU s   "
            f"{facts['peak_mb']:6.0f} MB   image {100 * facts['image']:.2f}   "
            f"pixel {100 * facts['pixel']:.2f}"
        )
    for title, mine, theirs in (("1 %", one, peer), ("10 %", ten, again)):
        print(
            f"  ours is {theirs['wall_s'] / mine['wall_s']:.1f} times as fast at {title} "
            f"({theirs['cpu_s'] / mine['cpu_s']:.1f} in CPU seconds)"
        )


if __name__ == "__main__":
    main()
