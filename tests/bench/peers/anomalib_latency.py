"""One image through anomalib's PatchCore, its OpenVINO export or PyTorch, when asked to.

Started by bench_latency_peers.py, in anomalib's own environment. Generous to the peer: no
post-processing (its thresholds and scaling to 0..1), no pictures, no inferencer object; its bank
are patches of the test picture and of noise, for the time does not depend on what is in it.
Answers every line on standard input, the name of a way, with milliseconds on standard output.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings

import numpy as np
import openvino
import torch
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("image", "weights", "backbone"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--layers", nargs="+", required=True)
    parser.add_argument("--mean", nargs=3, type=float, required=True)
    parser.add_argument("--std", nargs=3, type=float, required=True)
    parser.add_argument("--rows", type=int, required=True)
    args = parser.parse_args()

    image = np.load(args.image)  # (h, w, 3) uint8
    transform = Compose(
        [Resize(256, antialias=True), CenterCrop(224), Normalize(args.mean, args.std)]
    )
    model = Patchcore(
        backbone=args.backbone, layers=args.layers, pre_trained=False,
        pre_processor=PreProcessor(transform=transform), post_processor=False, visualizer=False,
        evaluator=False,
    )  # fmt: skip
    network = model.model.feature_extractor.feature_extractor
    network.load_state_dict(torch.load(args.weights, weights_only=True), strict=False)

    def tensor() -> torch.Tensor:
        return torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)

    model.train()
    network.eval()
    few = torch.cat([tensor(), *(torch.rand(1, 3, *image.shape[:2]) for _ in range(3))])
    with torch.no_grad():
        patches = model.model(torch.stack([transform(one) for one in few]))
    picks = torch.randperm(len(patches))[: args.rows]
    model.model.memory_bank = patches[picks].clone()
    model.model.embedding_store.clear()
    model.eval()

    with tempfile.TemporaryDirectory() as folder:
        path = model.to_openvino(folder, input_size=image.shape[:2])
        exact = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(path, "CPU", exact)
        together = compiled.input(0).partial_shape[
            0
        ]  # of anomalib 2.7 it takes two images, or none
        together = together.get_length() if together.is_static else 1

    def by_openvino() -> object:
        images = tensor().numpy().repeat(together, axis=0)
        return {key: np.array(value) for key, value in compiled([images]).items()}

    @torch.inference_mode()
    def by_torch() -> object:
        return model(tensor())

    ways = {"openvino": by_openvino, "torch": by_torch}
    print(f"ready {together} {tuple(model.model.memory_bank.shape)}", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        ways[line.strip()]()
        print(1e3 * (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
