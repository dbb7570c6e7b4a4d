"""How long a bank search takes, and how wrong the approximate one is.

    python -m tests.bench.bench_knn

Flat torch, flat faiss and inverted lists on one thread, 784 patches an image. Queries are normal
(rows the bank nearly holds) and defective (moved away), since only the first kind forgives misses.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from src.models.patchcore.memory_bank import MemoryBank

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


def fill(backend: str, rows: Tensor, nprobe: int, cells: int | None) -> MemoryBank:
    bank = MemoryBank(backend, cells, nprobe, "float32")
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


def main() -> None:
    torch.set_num_threads(1)
    import faiss

    faiss.omp_set_num_threads(1)
    for rows, dim in ((1_638, 384), (16_385, 384), (16_385, 1024), (163_856, 384)):
        stored, good, bad = draw(rows, dim)
        print(f"\nbank {rows:,} x {dim}, {PATCHES} patches an image")
        exact_ms, exact_good = per_image(fill("flat", stored, 1, None), good)
        exact_bad = per_image(fill("flat", stored, 1, None), bad)[1]
        print(f"  flat torch     {exact_ms:8.2f} ms   {1e3 / exact_ms:7.1f} images/s")
        cases = [("faiss", 1, None), ("ivf", 4, None), ("ivf", 16, None)]
        for backend, nprobe, cells in cases if rows < 100_000 else cases[1:]:
            bank = fill(backend, stored, nprobe, cells)
            ms, found = per_image(bank, good)
            wrong = [
                100 * float((a / b - 1).abs().mean())
                for a, b in ((found, exact_good), (per_image(bank, bad)[1], exact_bad))
            ]
            name = "flat faiss" if backend == "faiss" else f"ivf nprobe {nprobe}"
            print(
                f"  {name:14} {ms:8.2f} ms   {1e3 / ms:7.1f} images/s   flat torch is "
                f"{ms / exact_ms:5.2f} x as fast   image-score error {wrong[0]:.3f} % normal, "
                f"{wrong[1]:.3f} % defective"
            )


if __name__ == "__main__":
    main()
