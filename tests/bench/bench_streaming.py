"""Whether streaming keeps its memory budget, its cover and its accuracy.

    python -m tests.bench.bench_streaming

Four times the patches that the budget would hold at once are drawn in batches; each way of fitting
runs in a process of its own, and so does drawing alone: the difference of their peak resident
memories is what the fit needs. Defective
patches are normal ones moved by a few noise lengths; image AUROC is over images of 784 patches.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from src.evaluation.speed import peak_memory_mb
from src.models.patchcore.bank import MemoryBank
from src.models.patchcore.coreset import select
from src.models.patchcore.nearest import nearest
from src.models.patchcore.options import (
    Backend,
    CoresetMethod,
    CoresetOptions,
    CoresetStart,
    SearchOptions,
    Storage,
)
from src.models.patchcore.streaming import FitCost, Rows, StreamingCoreset, patch_origins

GRID, DIM, IMAGES, BATCH = (28, 28), 256, 560, 8
PATCHES = IMAGES * GRID[0] * GRID[1]
OPTIONS = CoresetOptions(CoresetMethod.greedy, 0.01, CoresetStart.official, None, None, 1024, None)
BUDGET_GB = 0.128  # a quarter of what all patches need


def images(seed: int, count: int) -> Iterator[Tensor]:
    """Batches (B, h, w, D): 60 clusters of unequal spread, smooth over the grid, with outliers."""
    fixed = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(60, DIM, generator=fixed)
    basis = torch.randn(60, 4, DIM, generator=fixed)
    spread = torch.rand(60, generator=fixed) * 0.6 + 0.05
    layout = torch.randint(60, GRID, generator=fixed)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(count // BATCH):
        latent = torch.randn(BATCH, *GRID, 4, generator=draws)
        tail = torch.rand(BATCH, *GRID, 1, generator=draws).clamp_min(1e-3) ** -0.2
        moved = torch.einsum("bhwk,hwkd->bhwd", latent * tail, basis[layout])
        noise = 0.2 * torch.randn(BATCH, *GRID, DIM, generator=draws)
        yield centres[layout] + moved * spread[layout][..., None] + noise


def fit(mode: str) -> MemoryBank:
    cost = FitCost.of(PATCHES, DIM, OPTIONS, BUDGET_GB if mode == "stream" else None)
    bank = MemoryBank(SearchOptions(None, Backend.flat, None, 1, Storage.float32))
    patches: Rows | StreamingCoreset = (
        StreamingCoreset(cost, OPTIONS, 0) if cost.streams else Rows(PATCHES, torch.empty(0, DIM))
    )
    for at, batch in enumerate(images(1, IMAGES)):
        index = torch.arange(at * BATCH, (at + 1) * BATCH)
        patches.add(batch.flatten(0, 2), patch_origins(index, *GRID))
    if isinstance(patches, StreamingCoreset):
        bank.fill(*patches.finish())
    else:
        rows = select(patches.values, OPTIONS, 0).rows
        bank.fill(patches.values[rows], patches.origin[rows])
    return bank


def judge(bank: MemoryBank) -> dict[str, float]:
    """Cover radius over the training patches, image AUROC over new ones."""
    kept = bank.vectors()
    radius = max(
        float(nearest(batch.flatten(0, 2), kept, 1).distance.max()) ** 0.5
        for batch in images(1, IMAGES)
    )
    draws = torch.Generator().manual_seed(5)
    scores, labels = [], []
    for batch in images(2, 1200):
        bad = torch.arange(BATCH) % 2 == 1
        shift = torch.randn(BATCH, DIM, generator=draws) * bad[:, None]
        batch[:, 10:12, 10:12] += 2.6 * shift[:, None, None]
        found = bank.search(batch.flatten(0, 2), 1).distance.view(BATCH, -1)
        scores.append(found.amax(1))
        labels.append(bad)
    score, label = torch.cat(scores), torch.cat(labels)
    wins = (score[label][:, None] > score[~label][None]).float().mean()
    return {"radius": radius, "image_auroc": 100 * float(wins)}


def child(mode: str) -> None:
    torch.set_num_threads(1)
    for batch in images(3, BATCH):
        select(batch.flatten(0, 2), OPTIONS, 0)  # every library is loaded
    began = time.process_time()
    if mode == "draw":
        total = sum(float(batch.sum()) for batch in images(1, IMAGES))
        print(
            json.dumps(
                {"peak_mb": peak_memory_mb(), "cpu_s": time.process_time() - began, "sum": total}
            )
        )
        return
    bank = fit(mode)
    facts = {"peak_mb": peak_memory_mb(), "cpu_s": time.process_time() - began, "rows": len(bank)}
    print(json.dumps(facts | judge(bank)))


def main() -> None:
    if len(sys.argv) > 1:
        child(sys.argv[1])
        return
    cost = FitCost.of(PATCHES, DIM, OPTIONS, BUDGET_GB)
    print(cost.describe())
    found = {}
    for mode in ("draw", "hold", "stream"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.bench_streaming", mode],
            check=True, capture_output=True, text=True, cwd=Path.cwd(),
        )  # fmt: skip
        found[mode] = json.loads(done.stdout.splitlines()[-1])
        print(mode, {key: round(value, 3) for key, value in found[mode].items()})
    hold, stream = found["hold"], found["stream"]
    for facts in (hold, stream):
        facts["peak_mb"] -= found["draw"]["peak_mb"]
    budget_mb = BUDGET_GB * 1e9 / 2**20
    print(
        f"streaming: peak {stream['peak_mb']:.0f} MB of a budget of {budget_mb:.0f} MB "
        f"({hold['peak_mb']:.0f} MB held at once), cover radius "
        f"{100 * (stream['radius'] / hold['radius'] - 1):+.1f} %, image AUROC "
        f"{stream['image_auroc'] - hold['image_auroc']:+.2f} points"
    )


if __name__ == "__main__":
    main()
