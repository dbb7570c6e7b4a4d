"""One image from an array to score and map: ours against anomalib's exports, in turn.

    python -m tests.bench.bench_latency_peers RUN --peer-python .venv-peer/bin/python

Both sides on one picture of the run, at its own size, with the same backbone weights, layers and
number of bank rows; ours with the decision, anomalib without (see peers/anomalib_latency.py). Each
side is a process of its own that waits while the other works.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from src.data.images import read_sample
from src.detector import Detector, data_of
from tests.bench.bench_latency import clock, exports
from tests.bench.bench_patchcore_peers import CASES, save_weights, triple


class Peer:
    """A process that takes one image through anomalib when asked to."""

    def __init__(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        while not (line := self._line()).startswith("ready"):
            pass
        _, together, bank = line.split(maxsplit=2)
        self.together = int(together)
        print(f"anomalib's bank: {bank}; images that its OpenVINO file takes at once: {together}")

    def run(self, way: str) -> None:
        """One image, to its end."""
        self.process.stdin.write(f"{way}\n")
        self.process.stdin.flush()
        self._line()

    def _line(self) -> str:
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"the peer ended with {self.process.wait()}")
        return line.strip()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--backbone", default="efficientnet_lite0", choices=CASES)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    detector = Detector.load(args.run, "cpu")
    image = np.asarray(read_sample(data_of(detector.config).test_samples[0]))
    name, layers, mean, std = CASES[args.backbone]
    with tempfile.TemporaryDirectory() as folder:
        weights, array = Path(folder) / "weights.pt", Path(folder) / "image.npy"
        save_weights(args.backbone, weights)
        np.save(array, image)
        peer = Peer([str(part) for part in [
            args.peer_python, Path(__file__).parent / "peers" / "anomalib_latency.py",
            "--image", array, "--weights", weights, "--backbone", name, "--layers", *layers,
            "--mean", *triple(mean), "--std", *triple(std),
            "--rows", len(detector.model.memory.bank),
        ]])  # fmt: skip
        ours = dict(exports(detector, image.shape[:2], Path(folder)))
        ours["PyTorch"] = lambda images: detector.detect(list(images))
        ways: dict[str, Callable[[], object]] = {
            f"ours, {title}": lambda run=run: run(image[None]) for title, run in ours.items()
        }
        ways["anomalib, OpenVINO"] = lambda: peer.run("openvino")
        ways["anomalib, PyTorch"] = lambda: peer.run("torch")
        times = clock(ways, args.rounds)
    whole = times["anomalib, OpenVINO"]
    times["anomalib, OpenVINO"] = type(whole)(*(value / peer.together for value in whole))
    peer.process.terminate()
    print("| way | ms an image | fastest |\n|---|---|---|")
    for title, taken in times.items():
        print(f"| {title} | {taken.median:.1f} | {taken.least:.1f} |")
    for mine, other in (("ONNX Runtime", "OpenVINO"), ("OpenVINO", "OpenVINO"), ("PyTorch",) * 2):
        ratio = times[f"anomalib, {other}"].median / times[f"ours, {mine}"].median
        print(f"ours by {mine} is {ratio:.2f} times as fast as anomalib's {other}")


if __name__ == "__main__":
    main()
