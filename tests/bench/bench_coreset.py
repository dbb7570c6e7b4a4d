"""How long a greedy coreset takes: ours against the official sampler and anomalib's.

    python -m tests.bench.bench_coreset

Both peers are restated from their descriptions and do what theirs do per pick. They run in the same
process, in turn, on one thread; CPU seconds are compared. The official sampler runs to its end;
anomalib's does a number of picks that is multiplied up and said so (all its picks cost the same).
Also says which share of the machine's best matrix product and memory speed ours reaches.
With MVTEC_AD_ROOT the features of all 209 bottle images are a third case.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import src.composing  # noqa: F401  tells Hydra the schemas of conf/
from src.models.patchcore.coreset import greedy_coreset, random_projection
from src.models.patchcore.nearest import linear, nearest

OFFICIAL_DIM = 128
BLOCK = 768
PEER_PICKS = 40


class Timed(NamedTuple):
    seconds: float  # CPU
    rows: Tensor


def cpu_seconds(run: Callable[[], Tensor], repeat: int = 1) -> Timed:
    best, rows = math.inf, torch.empty(0)
    for _ in range(repeat):
        began = time.process_time()
        rows = run()
        best = min(best, time.process_time() - began)
    return Timed(best, rows)


def ours(features: Tensor, size: int) -> Tensor:
    points = random_projection(features, OFFICIAL_DIM, 0)
    return greedy_coreset(points, size, start="official", seed=0, block=BLOCK, distances=False).rows


def official(features: Tensor, size: int) -> Tensor:
    """Approximate greedy sampler: norms of all rows again for every pick, running minimum."""
    torch.manual_seed(0)
    np.random.seed(0)

    def gaps(rows: Tensor, centres: Tensor) -> Tensor:
        a = rows.unsqueeze(1).bmm(rows.unsqueeze(2)).reshape(-1, 1)
        b = centres.unsqueeze(1).bmm(centres.unsqueeze(2)).reshape(1, -1)
        return (-2 * rows.mm(centres.T) + a + b).clamp(0, None).sqrt()

    layer = torch.nn.Linear(features.shape[1], OFFICIAL_DIM, bias=False)
    with torch.no_grad():
        points = layer(features)
        starts = np.random.choice(len(points), 10, replace=False).tolist()
        nearest = gaps(points, points[starts]).mean(1, keepdim=True)
        picks = []
        for _ in range(size):
            pick = int(nearest.argmax())
            picks.append(pick)
            nearest = torch.cat([nearest, gaps(points, points[pick : pick + 1])], 1)
            nearest = nearest.min(1).values.reshape(-1, 1)
    return torch.tensor(picks)


def anomalib(features: Tensor, size: int) -> Tensor:
    """KCenterGreedy of anomalib 2.7: sparse projection, full difference and norm for every pick."""
    N, D = features.shape
    dim = int(4 * math.log(N) / (0.9**2 / 2 - 0.9**3 / 3))
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(D, dim, generator=generator)
    density = 1 / math.sqrt(D)
    signs = (draw < density / 2).float() - (draw > 1 - density / 2).float()
    points = features @ (signs * math.sqrt(1 / density) / math.sqrt(dim))
    pick = torch.randint(N, (1,), generator=generator).squeeze()
    picks = [int(pick)]
    nearest: Tensor | None = None
    for _ in range(size - 1):
        gap = torch.linalg.norm(points - points[pick], ord=2, dim=1, keepdim=True)
        nearest = gap if nearest is None else torch.minimum(nearest, gap)
        pick = nearest.squeeze(1).max(0).indices
        nearest.scatter_(0, pick[None, None], 0.0)
        picks.append(int(pick))  # as numbers: kept tensors make each pick leak its temporary
    return torch.tensor(picks)


def compare(name: str, features: Tensor, size: int) -> None:
    N, D = features.shape
    print(f"\n{name}: N = {N:,}, D = {D}, {size:,} picks ({100 * size / N:.0f} %)")
    mine = cpu_seconds(lambda: ours(features, size), repeat=3)
    theirs = cpu_seconds(lambda: official(features, size))
    setup = cpu_seconds(lambda: anomalib(features, 1)).seconds
    few = cpu_seconds(lambda: anomalib(features, 1 + PEER_PICKS)).seconds
    peer = setup + (few - setup) / PEER_PICKS * (size - 1)
    same = len(set(mine.rows.tolist()) & set(theirs.rows.tolist()))
    radius = [
        float(nearest(features, features[t.rows], 1).distance.max()) ** 0.5 for t in (mine, theirs)
    ]
    print(f"  ours           {mine.seconds:9.3f} CPU s   cover radius {radius[0]:.3f}")
    print(
        f"  official       {theirs.seconds:9.3f} CPU s   cover radius {radius[1]:.3f}   "
        f"{theirs.seconds / mine.seconds:6.1f} x   {100 * same / size:.1f} % of the picks equal"
    )
    print(
        f"  anomalib       {peer:9.3f} CPU s   {peer / mine.seconds:6.1f} x   "
        f"(from {PEER_PICKS} picks, times {(size - 1) / PEER_PICKS:.0f})"
    )
    floor(features, size, mine.seconds)


def floor(features: Tensor, size: int, seconds: float) -> None:
    """Our time against the products alone at the machine's best speed, and against bytes."""
    N, D = features.shape
    flop = 2.0 * N * OFFICIAL_DIM * (D + size)
    left, right = torch.randn(2048, OFFICIAL_DIM), torch.randn(512, OFFICIAL_DIM)
    offset = torch.zeros(512)
    speed = 2.0 * 2048 * 512 * OFFICIAL_DIM
    speed /= min(
        cpu_seconds(lambda: linear(left, right, offset)).seconds or 1e-9 for _ in range(20)
    )
    source = torch.empty(64 << 20, dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    band = 2 * len(source) / min(
        cpu_seconds(lambda: target.copy_(source)).seconds for _ in range(5)
    )  # fmt: skip
    passes = math.ceil(size / 150)
    moved = 4.0 * N * (D + OFFICIAL_DIM) + passes * 4.0 * N * (OFFICIAL_DIM + 5)
    print(
        f"  ours reaches {flop / seconds / 1e9:.0f} of {speed / 1e9:.0f} GFLOP/s "
        f"({100 * flop / seconds / speed:.0f} % of the best product, active rows counted as all); "
        f"{moved / band:.3f} s would be the memory's share at {band / 1e9:.1f} GB/s"
    )


def bottle_features(root: str) -> tuple[Tensor, Tensor, Tensor]:
    """Official 384-value patch vectors of EfficientNet-Lite0 for bottle.

    Returns: training patches (N, 384), patches of good and of defective test images (n, 784, 384).
    """
    from hydra import compose, initialize_config_dir

    from src.data.datamodule import AnomalyDataModule
    from src.models.build import build_model

    overrides = [
        "model=patchcore", "backbone=efficientnet_lite0", "model.target_dim=384", "data=mvtec",
        f"data.root={root}", "data.category=bottle",
    ]  # fmt: skip
    with initialize_config_dir(os.path.abspath("conf"), version_base="1.3"):  # noqa: PTH100
        cfg = compose("run", overrides)
    data = AnomalyDataModule(cfg)
    data.setup()
    model = build_model(cfg, data.image_size)

    def patches(batch: dict[str, Tensor]) -> Tensor:
        return model.patches(batch["image"])[0].flatten(1, 2)

    with torch.inference_mode():
        train = [patches(batch).flatten(0, 1) for batch in data.ordered_train_dataloader()]
        test = [(patches(batch), batch["label"]) for batch in data.test_dataloader()]
    queries, label = (torch.cat(part) for part in zip(*test, strict=True))
    return torch.cat(train).clone(), queries[label == 0].clone(), queries[label == 1].clone()


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    compare("Gaussian", torch.randn(60_000, 384, generator=generator), 600)
    compare("Gaussian", torch.randn(20_000, 1024, generator=generator), 2_000)
    root = os.environ.get("MVTEC_AD_ROOT")
    if root:
        features = bottle_features(root)[0]
        compare("bottle, EfficientNet-Lite0", features, len(features) // 100)
    else:
        print("\nMVTEC_AD_ROOT is not set: no bottle features")


if __name__ == "__main__":
    main()
