"""Score any number of images with constant memory and write what was found.

Results mirror the folders of the images, so equal file names never collide. Rows go to
`scores.csv.partial` as they come and become `scores.csv` at the end; an interrupted call continues
behind the last complete row.
"""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from src.data.images import open_rgb
from src.deployment.drift import DriftMonitor
from src.deployment.inbox import find_images, watch
from src.deployment.pictures import PictureWriter
from src.detector import Detection, Detector
from src.errors import ConfigError, DataError, GoodpartsError
from src.saved_run import SavedRun

UNREADABLE = 3  # exit code: some files could not be read

_COLUMNS = ("path", "score", "decision", "map_max", "defective_share")


class Loaded(NamedTuple):
    """An image that was read, or the reason why not."""

    path: Path
    image: Image.Image | None
    problem: str


@dataclass
class _Ledger:
    """scores.csv while it grows, and the files that could not be read."""

    folder: Path
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.partial = self.folder / "scores.csv.partial"
        self.done = self._continue()
        self._stream = self.partial.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._stream)
        if not self.done and self.partial.stat().st_size == 0:
            self._writer.writerow(_COLUMNS)

    def _continue(self) -> set[str]:
        """Paths of complete rows; an incomplete last row is cut off."""
        if not self.partial.is_file():
            return set()
        text = self.partial.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        self.partial.write_text(whole, encoding="utf-8")
        return {row[0] for row in csv.reader(whole.splitlines()[1:]) if len(row) == len(_COLUMNS)}

    def add(self, name: str, found: Detection) -> None:
        share = f"{found.mask.mean():.6f}"
        row = (
            name,
            repr(found.score),
            int(found.alarm),
            repr(float(found.anomaly_map.max())),
            share,
        )
        self._writer.writerow(row)
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()

    def finish(self) -> None:
        self.close()
        os.replace(self.partial, self.folder / "scores.csv")  # noqa: PTH105
        listing = self.folder / "unreadable.csv"
        listing.unlink(missing_ok=True)
        if self.unreadable:
            with listing.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([("path", "reason"), *self.unreadable])


def predict_images(cfg: DictConfig) -> int:
    """Score `cfg.images` with `cfg.run` into `cfg.out`; the exit code (0, or 3: unreadable)."""
    console = Console()
    root, paths = _what(cfg)
    detector = Detector.load(Path(cfg.run), cfg.device)
    session = _Session(cfg, detector, root, console)
    groups = [paths] if paths is not None else _watched(cfg)
    with _progress(console) as progress:
        bar = progress.add_task("scoring", total=None if paths is None else len(paths))
        for group in groups:
            todo = session.remaining(group)
            progress.advance(bar, len(group) - len(todo))
            for batch in _decoded(todo, cfg.batch_size, cfg.decoders):
                session.score(batch)
                progress.advance(bar, len(batch))
    session.ledger.finish()
    session.summary()
    return UNREADABLE if session.ledger.unreadable else 0


class _Session:
    """One call of `src.predict`: what scores, what writes, what counts."""

    def __init__(self, cfg: DictConfig, detector: Detector, root: Path, console: Console) -> None:
        self.detector, self.root, self.console = detector, root, console
        self.out = Path(cfg.out).expanduser()
        self.ledger = _Ledger(self.out)
        self.writer = PictureWriter(self.out, detector, cfg.save)
        calibration = calibration_scores(SavedRun(detector.directory))
        self.monitor = DriftMonitor(calibration, cfg.drift.window, cfg.drift.alpha)
        self.images = self.alarms = 0

    def remaining(self, paths: list[Path]) -> list[Path]:
        """Images that an interrupted call has not scored yet."""
        todo = [path for path in paths if _name(self.root, path) not in self.ledger.done]
        if len(todo) < len(paths):
            self.console.print(f"Continuing: {len(paths) - len(todo)} images are already scored.")
        return todo

    def score(self, batch: list[Loaded]) -> None:
        """Score a batch, write its results, list what cannot be read."""
        for item in batch:
            if item.image is None:
                self.ledger.unreadable.append((_name(self.root, item.path), item.problem))
        readable = [item for item in batch if item.image is not None]
        for item, found in zip(readable, self._detect(readable), strict=True):
            if found is not None:
                self._keep(item, found)

    def _keep(self, item: Loaded, found: Detection) -> None:
        name = _name(self.root, item.path)
        self.writer.write(name, item.image, found)
        self.ledger.add(name, found)
        self.images, self.alarms = self.images + 1, self.alarms + found.alarm
        if warning := self.monitor.update(found.score):
            self.console.print(f"[yellow]{warning}")

    def _detect(self, items: list[Loaded]) -> list[Detection | None]:
        """Detections of a batch; an image the transform refuses is listed, not fatal."""
        images = [item.image for item in items if item.image is not None]
        try:
            return [*self.detector.detect(images)] if images else []
        except DataError:
            return [self._detect_one(item) for item in items]  # find the one at fault

    def _detect_one(self, item: Loaded) -> Detection | None:
        try:
            return self.detector.detect([item.image] if item.image else [])[0]
        except DataError as error:
            self.ledger.unreadable.append((_name(self.root, item.path), _one_line(error)))
            return None

    def summary(self) -> None:
        """Counts, the rule that decided, and where everything is."""
        rule = self.detector.threshold
        self.console.print(
            f"{self.images} images scored, {self.alarms} alarms "
            f"(threshold {rule.image:.4g}, rule {rule.rule}); results in {self.out}"
        )
        if self.ledger.unreadable:
            listing = self.out / "unreadable.csv"
            count = len(self.ledger.unreadable)
            self.console.print(f"{count} files could not be read; see {listing}")
        if self.images and rule.image == float("inf"):
            self.console.print("The threshold is infinite, so no alarm is possible: calibrate.")


def calibration_scores(run: SavedRun) -> list[float]:
    """Image scores of the normal images the threshold was set with; empty for oracles."""
    path = run.directory / "calibration.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return [float(row["score"]) for row in csv.DictReader(stream)]


def _decoded(paths: list[Path], batch_size: int, decoders: int) -> Iterator[list[Loaded]]:
    """Batches of images, read by threads up to two batches ahead."""
    with ThreadPoolExecutor(max_workers=max(1, decoders)) as pool:
        ahead: deque[Future[Loaded]] = deque()
        queue = iter(paths)
        batch: list[Loaded] = []
        while True:
            while len(ahead) < 2 * batch_size and (path := next(queue, None)) is not None:
                ahead.append(pool.submit(_load, path))
            if not ahead:
                break
            batch.append(ahead.popleft().result())
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _load(path: Path) -> Loaded:
    try:
        return Loaded(path, open_rgb(path), "")
    except DataError as error:
        return Loaded(path, None, _one_line(error))


def _one_line(error: GoodpartsError) -> str:
    return f"{error.what} Found: {error.found}. {error.do}"


def _what(cfg: DictConfig) -> tuple[Path, list[Path] | None]:
    """Root folder and images; None for a watched folder."""
    if not cfg.watch:
        return find_images(str(cfg.images))
    folder = Path(str(cfg.images)).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            "watch=true needs a folder.", found=str(folder), do="create it or give another one"
        )
    return folder, None


def _watched(cfg: DictConfig) -> Iterator[list[Path]]:
    folder = Path(str(cfg.images)).expanduser()
    return watch(folder, cfg.watch_seconds, cfg.watch_idle_seconds)


def _name(root: Path, path: Path) -> str:
    """Path below the common root, with forward slashes on every system."""
    absolute, base = path.absolute(), root.absolute()
    return (absolute.relative_to(base) if absolute.is_relative_to(base) else path).as_posix()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.speed:.1f} images/s"), TimeRemainingColumn(), console=console,
        disable=not console.is_terminal,
    )  # fmt: skip
