"""How the live page bears a crowd: milliseconds a request, images a second.

    python -m tests.bench.bench_serving [run=runs/...] [images ...] [other=checkout]

A real server in a process of its own, clients in threads, one image a request. Without arguments
the demo run is served its own test images; both sides share the machine, as on a laptop. `other`:
the same by another checkout of this program, five times in turn, scores only.
"""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from tests.serving.live import served


def demo(folder: Path) -> tuple[Path, list[Path]]:
    """A finished demo run and its test images."""
    from hydra import compose, initialize_config_dir

    from src.composing import CONF
    from src.data.datamodule import AnomalyDataModule
    from src.experiment import run_experiment

    words = ["experiment=demo", f"runs_dir={folder}", "report.enabled=false"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("run", overrides=words)
    run = run_experiment(cfg).run.directory
    data = AnomalyDataModule(cfg)
    data.setup()
    return run, [sample.image_path for sample in data.test_samples]


def crowd(address: str, images: list[bytes], clients: int, requests: int, query: str) -> np.ndarray:
    """Seconds of every request."""
    with httpx.Client(timeout=60) as client:

        def ask(number: int) -> float:
            began = time.perf_counter()
            content = images[number % len(images)]
            reply = client.post(f"{address}api/score{query}", files={"files": ("x.png", content)})
            reply.raise_for_status()
            return time.perf_counter() - began

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, range(clients)))  # warm up
            return np.array(list(pool.map(ask, range(requests))))


def in_turn(run: Path, images: list[bytes], other: Path) -> None:
    """Images a second by this checkout and another, medians of five turns."""
    here = Path(__file__).resolve().parents[2]
    with served(run, code=here) as ours, served(run, code=other) as theirs:
        for clients in (1, 4, 16):
            rates: dict[str, list[float]] = {ours: [], theirs: []}
            for _ in range(5):
                for address, found in rates.items():
                    began = time.perf_counter()
                    crowd(address, images, clients, 48, "")
                    found.append((48 + clients) / (time.perf_counter() - began))
            mine, before = (float(np.median(found)) for found in rates.values())
            print(f"{clients:3} clients: {mine:5.1f} images/s, other {before:5.1f}, "
                  f"ratio {mine / before:.2f}", flush=True)  # fmt: skip


def main(words: list[str]) -> None:
    """Print p50, p95 and throughput for growing crowds."""
    with tempfile.TemporaryDirectory() as name:
        named = [word.removeprefix("run=") for word in words if word.startswith("run=")]
        other = [word.removeprefix("other=") for word in words if word.startswith("other=")]
        paths = [Path(word) for word in words if "=" not in word]
        run = Path(named[0]) if named else None
        if run is None or not paths:
            run, paths = demo(Path(name))
        images = [path.read_bytes() for path in paths[:32]]
        if other:
            in_turn(run, images, Path(other[0]).resolve())
            return
        with served(run) as address:
            for query in ("", "?pictures=true"):
                for clients in (1, 4, 16):
                    began = time.perf_counter()
                    seconds = crowd(address, images, clients, 120, query)
                    rate = (120 + clients) / (time.perf_counter() - began)
                    p50, p95 = 1e3 * np.percentile(seconds, [50, 95])
                    print(
                        f"{clients:3} clients {query or 'scores only':15} p50 {p50:6.1f} ms   "
                        f"p95 {p95:6.1f} ms   {rate:5.1f} images/s",
                        flush=True,
                    )


if __name__ == "__main__":
    main(sys.argv[1:])
