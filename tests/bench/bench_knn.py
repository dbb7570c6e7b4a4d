"""How long a bank search takes, and how wrong the approximate one is.

    python -m tests.bench.bench_knn

Flat torch, flat faiss and inverted lists on one thread, 784 patches an image. Queries are normal
and defective: a miss among normal patches is a false alarm, one in a defect changes little. With
MVTEC_AD_ROOT the last case is a 10 % bank of bottle with its test images.
"""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor

from src.models.patchcore.bank import MemoryBank
from src.models.patchcore.coreset import greedy_coreset, random_projection
from src.models.patchcore.options import Backend, SearchOptions, Storage
from tests.bench.bench_coreset import bottle_features

PATCHES = 784
IMAGES = 8


def draw(rows: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bank, normal and defective queries from 40 clusters of low intrinsic dimension."""
    generator = torch.Generator().manual_seed(0)

    def normal(count: int) -> Tensor:
        mix = torch.randint(40, (count,), generator=generator)
        latent = torch.randn(count, 24, generator=generator)
        noise = 0.1 * torch.randn(count, dim, generator=generator)
        return centres[mix] + latent @ basis + noise

    centres = 2 * torch.randn(40, dim, generator=generator)
    basis = torch.randn(24, dim, generator=generator) / 5
    bank, good = normal(rows), normal(PATCHES * IMAGES)
    bad = good.clone()
    bad[::PATCHES] += torch.randn(IMAGES, dim, generator=generator)
    return bank, good, bad


def fill(backend: str, rows: Tensor, nprobe: int) -> MemoryBank:
    bank = MemoryBank(SearchOptions(None, Backend(backend), None, nprobe, Storage.float32))
    bank.fill(rows, torch.zeros(len(rows), 3))
    return bank


def per_image(bank: MemoryBank, queries: Tensor) -> tuple[float, Tensor]:
    """CPU milliseconds an image, and image scores (largest distance of its patches)."""
    bank.search(queries[:PATCHES], 1)
    best = float("inf")
    scores = torch.empty(0)
    for _ in range(3):
        began = time.process_time()
        parts = [bank.search(part, 1).distance.amax() for part in queries.split(PATCHES)]
        best = min(best, time.process_time() - began)
        scores = torch.stack(parts).sqrt()
    return 1e3 * best / IMAGES, scores


def compare(name: str, stored: Tensor, good: Tensor, bad: Tensor, *, with_faiss: bool) -> None:
    """Every back end on normal and on defective queries (images * 784, D)."""
    print(f"\n{name}: bank {stored.shape[0]:,} x {stored.shape[1]}, {PATCHES} patches an image")
    exact = fill("flat", stored, 1)
    exact_ms, exact_good = per_image(exact, good)
    exact_bad = per_image(exact, bad)[1]
    print(f"  flat torch     {exact_ms:8.2f} ms   {1e3 / exact_ms:7.1f} images/s")
    for backend, nprobe in [("faiss", 1)] * with_faiss + [("ivf", 4), ("ivf", 16)]:
        bank = fill(backend, stored, nprobe)
        ms, found = per_image(bank, good)
        wrong = [
            100 * float((a / b - 1).abs().mean())
            for a, b in ((found, exact_good), (per_image(bank, bad)[1], exact_bad))
        ]
        title = "flat faiss" if backend == "faiss" else f"ivf nprobe {nprobe}"
        print(
            f"  {title:14} {ms:8.2f} ms   {1e3 / ms:7.1f} images/s   {ms / exact_ms:5.2f} times "
            f"the time of flat torch   image-score error {wrong[0]:.3f} % normal, "
            f"{wrong[1]:.3f} % defective"
        )


def main() -> None:
    torch.set_num_threads(1)
    import faiss

    faiss.omp_set_num_threads(1)
    for rows, dim in ((1_638, 384), (16_385, 384), (16_385, 1024), (163_856, 384)):
        compare("drawn", *draw(rows, dim), with_faiss=rows < 100_000)
    root = os.environ.get("MVTEC_AD_ROOT")
    if root:
        features, good, bad = bottle_features(root)
        kept = greedy_coreset(
            random_projection(features, 128, 0), len(features) // 10, start="official", seed=0,
            block=1024,
        ).rows  # fmt: skip
        queries = [part[:IMAGES].flatten(0, 1) for part in (good, bad)]
        compare("bottle, EfficientNet-Lite0, 10 %", features[kept], *queries, with_faiss=True)
    else:
        print("\nMVTEC_AD_ROOT is not set: no bottle features")


if __name__ == "__main__":
    main()
