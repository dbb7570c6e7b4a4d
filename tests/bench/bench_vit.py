"""Speed and memory of DINOv2 and DINOv3 with random weights, search included.

    python tests/bench/bench_vit.py dinov2_small:448 dinov2_large:672 dinov3_base:448
    python tests/bench/bench_vit.py dinov2_small:448 bfloat16

Each backbone is asked as AnomalyDINO asks it: the last block behind the final norm, unit length,
one neighbour in the patches of one reference and its seven turned copies. What weights say does not
change how long they take. On a GPU where there is one, else on the CPU; AMX is used by torch itself
for bfloat16 where a CPU has it.
"""

from __future__ import annotations

import resource
import sys
import time

import torch
import torch.nn.functional as F

from src.backbones.features import PRECISIONS, FeatureExtractor
from src.composing import compose
from src.models.patchcore.nearest import nearest, squared_norms

REFERENCES, REPEATS = 8, 5
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(what, repeats: int = REPEATS) -> float:
    """The shortest of several times, after one that is not counted."""
    best = float("inf")
    for turn in range(repeats + 1):
        began = time.perf_counter()
        what()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - began)
    return best


@torch.inference_mode()
def measure(backbone: str, side: int, precision: str) -> None:
    group = compose("run", [f"backbone={backbone}"]).backbone
    size = (side // group.step * group.step,) * 2
    network = FeatureExtractor(
        group.name, list(group.layers), "random", size, None, precision, False
    ).to(DEVICE)
    million = sum(p.numel() for p in network.parameters()) / 1e6
    batch = 8 if DEVICE.type == "cuda" else 1
    image = torch.randn(batch, 3, *size, device=DEVICE)

    def tokens() -> torch.Tensor:
        return F.normalize(network(image)[0].flatten(2).transpose(1, 2).flatten(0, 1), dim=1)

    patches = len(tokens()) // batch
    rows = F.normalize(torch.randn(REFERENCES * patches, network.channels[0], device=DEVICE), dim=1)
    norms = squared_norms(rows)
    forward = seconds(tokens) / batch
    queries = tokens()
    search = seconds(lambda: nearest(queries, rows, 1, norms)) / batch
    if DEVICE.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| {backbone} | {million:.0f} M | {size[0]} px, {patches} patches | {precision} | "
          f"{1e3 * forward:.0f} ms | {1e3 * search:.0f} ms | {1 / (forward + search):.2f} | "
          f"{peak:.1f} GB |", flush=True)  # fmt: skip


def main(words: list[str]) -> None:
    precision = next((word for word in words if word in PRECISIONS), "float32")
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| backbone | parameters | image | precision | features | search | images/s | peak |")
    print("|---|---|---|---|---|---|---|---|")
    for word in words:
        if word not in PRECISIONS:
            backbone, _, side = word.partition(":")
            measure(backbone, int(side or 448), precision)


if __name__ == "__main__":
    main(sys.argv[1:])
