"""What a hundred thousand images to learn from and a million to score cost, and how it grows.

    PYTHONPATH=. python tests/bench/bench_scale.py                   # both, drawn parts
    PYTHONPATH=. python tests/bench/bench_scale.py stream [values=152,1024]
    PYTHONPATH=. python tests/bench/bench_scale.py score [run=R from=FOLDER] [images=1200]

**Learning.** A streaming coreset of N patches (N = 784 an image) keeps M = f N. The model, see
`src/models/patchcore/streaming.py` (d = 128 values that rows are selected in, R rows a part):

    FLOP     about 2 d (2/3 N M + R M), here summed over the parts as they come
    seconds  a N + FLOP / F

a (projection and copies, for each patch) and F (FLOP/s of one core) are fitted to the smaller
streams and checked against the largest. CPU seconds of one thread are counted, which other programs
disturb least. Memory is what `FitCost.divided` plans: M bank rows twice, and a part; on disk there
is nothing but the saved bank. Extrapolated numbers are marked as such.

**Scoring.** `python -m src.predict engine=ray` on copies of test images, 1 and 2 workers of one
core in turn. The command runs as users run it; the rows of `scores.csv.partial` are counted while
it grows, so starting up (Ray, and a detector for each worker) and the rate are told apart:

    seconds  start + images / (workers rate)

start and rate are fitted to the runs with one worker; the measured runs with two are the check.
Beyond, the model holds until the process that writes the rows is busy all of the time: how many a
second it takes is measured with a worker that scores nothing.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.deployment import scoring
from src.deployment.ledger import Scored, Version, open_ledger
from src.models.patchcore.options import CoresetMethod, CoresetOptions, CoresetStart
from src.models.patchcore.streaming import WORKSPACE, FitCost, StreamingCoreset, patch_origins
from tests.bench.bench_serving import demo

PATCHES = 784  # an image of 224 pixels, stride 8
PART = 16_384  # rows
RATIOS = (0.1, 0.01, 0.001)
ARCHIVE, FACTORY = 100_000, 1_000_000  # images to learn from, to score


# --- learning ------------------------------------------------------------------------------------


def drawn(images: int, dim: int, seed: int = 1) -> Iterator[Tensor]:
    """Patches (784, D) of one image after the other: a mixture over places, and noise."""
    fixed, draws = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    place = 2.0 * torch.randn(PATCHES, dim, generator=fixed)
    basis = torch.randn(16, dim, generator=fixed) / 4.0
    for _ in range(images):
        latent = torch.randn(PATCHES, 16, generator=draws)
        yield place + latent @ basis + 0.2 * torch.randn(PATCHES, dim, generator=draws)


def planned(patches: int, dim: int, ratio: float) -> tuple[CoresetOptions, FitCost]:
    """A stream whose budget holds the bank and a part of `PART` rows."""
    options = CoresetOptions(
        CoresetMethod.greedy, ratio, CoresetStart.official, 128, None, 768, None
    )
    cost = FitCost.of(patches, dim, options, None)
    part = PART * (cost.row_bytes + cost.row_bytes // 2)
    bank = cost.kept * (2 * cost.bank_row_bytes + cost.row_bytes)
    return options, cost._replace(budget=WORKSPACE + bank + part + cost.row_bytes)


def flop(cost: FitCost) -> float:
    """What the schedule of parts comes to: meetings with kept rows, and selections in parts."""
    N, M = cost.patches, cost.kept
    seen = kept = carried = 0
    met = 0.0
    while seen < N:
        new = min(PART - carried, N - seen)
        seen += new
        wanted = M if seen == N else max(kept + 1, int(M * (seen / N) ** 0.5))
        picks = min(wanted - kept, carried + new)
        met += new * kept + (carried + new) * picks
        kept, carried = kept + picks, min(M, PART // 2)
    return 2.0 * cost.selection_dim * met


def stream(images: int, dim: int, ratio: float) -> tuple[FitCost, float]:
    """CPU seconds that the coreset takes, without the drawing."""
    options, cost = planned(images * PATCHES, dim, ratio)
    coreset, taken = StreamingCoreset(cost, options, 0), 0.0
    for number, patches in enumerate(drawn(images, dim)):
        origin = patch_origins(torch.tensor([number]), 28, 28)
        began = time.process_time()
        coreset.add(patches, origin)
        taken += time.process_time() - began
    began = time.process_time()
    rows, _ = coreset.finish()
    taken += time.process_time() - began
    if len(rows) != cost.kept:
        raise SystemExit(f"{len(rows)} rows kept, planned were {cost.kept}")
    return cost, taken


def learn(dims: Sequence[int], sizes: Sequence[int] = (26, 52, 104, 208)) -> None:
    """The tables of a streaming coreset at 10 %."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for dim in dims:
        print(f"\nStreaming coreset at 10 %, {dim} values, parts of {PART:,} rows, one thread\n")
        seen = [stream(images, dim, 0.1) for images in sizes]
        work = np.array([[cost.patches, flop(cost)] for cost, _ in seen])
        taken = np.array([seconds for _, seconds in seen])
        shares = work[:-1] / taken[:-1, None]  # relative errors count alike
        each, inverse = np.linalg.lstsq(shares, np.ones(len(shares)), rcond=None)[0].tolist()
        told = work @ np.array([each, inverse])
        print(
            "| patches | TFLOP | CPU s | patches a minute and core | model s | measured / model |"
        )
        print("|---|---|---|---|---|---|")
        for (patches, operations), seconds, model in zip(work, taken, told, strict=True):
            print(
                f"| {patches:,.0f} | {operations / 1e12:.3f} | {seconds:.2f} | "
                f"{60 * patches / seconds:,.0f} | {model:.2f} | {seconds / model:.2f} |"
            )
        print(
            f"\n{1e6 * each:.1f} us a patch, {1e-9 / inverse:.0f} GFLOP/s; the last is the check\n"
        )
        extrapolate(dim, each, inverse)
    torch.set_num_threads(threads)


def extrapolate(dim: int, each: float, inverse: float) -> None:
    """What the fitted model says of `ARCHIVE` images, and where a million a minute ends."""
    print(f"Extrapolated to {ARCHIVE:,} images on one core:\n")
    print("| ratio | bank rows | hours | patches a minute | memory GB | bank on disk GB |")
    print("|---|---|---|---|---|---|")
    for ratio in RATIOS:
        _, cost = planned(ARCHIVE * PATCHES, dim, ratio)
        taken = each * cost.patches + inverse * flop(cost)
        print(
            f"| {100 * ratio:g} % | {cost.kept:,} | {taken / 3600:,.1f} | "
            f"{60 * cost.patches / taken:,.0f} | {(cost.budget or 0) / 1e9:.1f} | "
            f"{4e-9 * dim * cost.kept:.1f} |"
        )
    for ratio in RATIOS:
        images = 8
        while True:
            _, cost = planned(images * PATCHES, dim, ratio)
            if 60 * cost.patches < 1e6 * (each * cost.patches + inverse * flop(cost)):
                break
            images = round(images * 1.1)
        print(
            f"\na million patches a minute and core at {100 * ratio:g} %: up to {images:,} images"
        )


# --- scoring -------------------------------------------------------------------------------------


class Growth(NamedTuple):
    """One call of src.predict."""

    start: float  # seconds until the first row, extrapolated
    rate: float  # rows a second, while they come
    total: float  # seconds from start to exit
    core_ms: float  # CPU milliseconds an image, of workers, writer and Ray together


def predict(run: Path, images: Path, out: Path, workers: int) -> Growth:
    """Score a folder with so many workers of one core."""
    command = [
        sys.executable, "-m", "src.predict", f"run={run}", f"images={images}", f"out={out}",
        "engine=ray", f"workers={workers}", "engine.cpus=1", "engine.gpus=0", "device=cpu",
        "save.overlays=false", "save.masks=false", "drift.window=1000000",
    ]  # fmt: skip
    began = time.perf_counter()
    seen: list[tuple[float, int, float]] = []  # seconds, rows, CPU seconds
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            time.sleep(0.1)
            rows = lines(out / "scores.csv.partial") - 1
            if rows > 0 and (not seen or rows > seen[-1][1]):
                seen.append((time.perf_counter() - began, rows, cpu_seconds(process.pid)))
        error = process.stderr.read().decode() if process.stderr else ""
    total = time.perf_counter() - began
    if process.returncode or len(seen) < 3:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{error}")
    seconds, counts, used = zip(*seen, strict=True)
    each, start = np.polyfit(counts, seconds, 1)
    last = max(1, int(np.argmax(used)))  # later, workers that have ended do not count any more
    core = (used[last] - used[0]) / (counts[last] - counts[0])
    return Growth(float(start), 1 / float(each), total, 1e3 * core)


def lines(path: Path) -> int:
    """Lines of a file that another process writes."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all below it that live; NaN without /proc."""
    parents, times = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            times[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    family, size = {pid}, 0
    while len(family) > size:
        size = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    ticks = sum(times.get(one, 0) for one in family)
    return ticks / os.sysconf("SC_CLK_TCK") if times else float("nan")


class Idle:
    """In the place of an actor: rows, but no scores."""

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        names = [os.fsdecode(path) for path in block["path"]]
        rows = [Scored(Version(name, 1, 1), "", 1.0, False, 1.0, 0.0) for name in names]
        return {"found": [pickle.dumps(row) for row in rows]}


def write_only(count: int) -> float:
    """Rows a second that come through Ray into a ledger, once they come."""
    cfg = OmegaConf.create({
        "engine": {"address": None, "cpus": 1, "gpus": 0}, "workers": 1, "batch_size": 8,
        "run": ".", "out": ".",
    })  # fmt: skip
    paths = [Path(f"/archive/line3/{number:09d}.png") for number in range(count)]
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.object(scoring, "Actor", Idle),
        open_ledger(Path(name), {}) as ledger,
    ):
        began = 0.0
        for batch in scoring.spread(paths, Path("/archive"), cfg):
            began = began or time.perf_counter()
            for found in batch:
                ledger.add(found)
        return count / (time.perf_counter() - began)


def score(words: dict[str, str]) -> None:
    """The table of scoring with 1 and 2 workers in turn."""
    count, rounds = int(words.get("images", 1200)), int(words.get("rounds", 3))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "run" in words:
            run, paths = Path(words["run"]), sorted(Path(words["from"]).rglob("*.png"))
        else:
            run, paths = demo(folder)
        for number in range(count):
            target = folder / "archive" / f"{number:06d}{paths[0].suffix}"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(paths[number % len(paths)], target)
        found: dict[int, list[Growth]] = {1: [], 2: []}
        for turn in range(rounds):
            for workers, calls in found.items():
                out = folder / f"out{turn}_{workers}"
                calls.append(predict(run, folder / "archive", out, workers))
                print(
                    workers, *(f"{n} {v:.4g}" for n, v in calls[-1]._asdict().items()), flush=True
                )
    report(count, found, write_only(100_000))


def report(count: int, found: dict[int, list[Growth]], writer: float) -> None:
    """Medians, the check of the model and what it says of a million images."""
    one, two = (
        Growth(*(statistics.median(values) for values in zip(*calls, strict=True)))
        for calls in found.values()
    )
    print(f"\n{count} images, medians of {len(found[1])} calls each, in turn\n")
    print("| workers | start s | images/s | CPU ms an image | whole call s | model s "
          "| measured / model |\n|---|---|---|---|---|---|---|")  # fmt: skip
    rest = one.total - one.start - count / one.rate  # tables and shutdown
    for workers, got in ((1, one), (2, two)):
        told = one.start + rest + count / (workers * one.rate)
        print(
            f"| {workers} | {got.start:.1f} | {got.rate:.1f} | {got.core_ms:.1f} | "
            f"{got.total:.1f} | {told:.1f} | {got.total / told:.2f} |"
        )
    print(f"\nrate grows {two.rate / one.rate:.2f} times from 1 to 2 workers")
    print(f"the writing process takes {writer:,.0f} rows/s, enough for {writer / one.rate:,.0f} "
          "workers\n")  # fmt: skip
    print(f"| workers of one core | hours for {FACTORY:,} images |\n|---|---|")
    for workers in (1, 2, 8, 64):
        hours = (one.start + rest + FACTORY / min(workers * one.rate, writer)) / 3600
        print(f"| {workers} | {hours:.1f}{'' if workers < 3 else ' (modelled)'} |")


def main(words: list[str]) -> None:
    """Do what the words say."""
    said = dict(word.split("=", 1) for word in words[1:])
    if not words or words[0] == "stream":
        learn([int(value) for value in said.get("values", "152,1024").split(",")])
    if not words or words[0] == "score":
        score(said)


if __name__ == "__main__":
    main(sys.argv[1:])
