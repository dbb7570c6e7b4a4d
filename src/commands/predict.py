"""Score any number of images with constant memory and write what was found.

Results mirror the folders of the images, so equal file names never collide. An interrupted call
continues where it stopped, a repeated one scores only what is new or was changed. `scores.csv` has
a row for each image the call names; of a watched folder, one for each version of a file that was
scored, the newest last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from src.deployment.drift import DriftMonitor
from src.deployment.inbox import find_images, watch
from src.deployment.ledger import Ledger, Scored, Version, open_ledger
from src.deployment.pictures import PictureWriter
from src.deployment.scoring import Scorer, decoded, name_below
from src.deployment.spreading import spread
from src.detector import Detector
from src.errors import ConfigError
from src.files import shown
from src.saved_run import SavedRun

UNREADABLE = 3  # exit code: some files could not be read


def predict_images(cfg: DictConfig) -> int:
    """Score `cfg.images` with `cfg.run` into `cfg.out`; the exit code (0, or 3: unreadable)."""
    out = Path(str(cfg.out)).expanduser()
    root, groups = _what(cfg)
    _keep_apart(out, root)
    detector = Detector.load(Path(cfg.run), cfg.device)
    scorer = Scorer(detector, PictureWriter(out, detector, cfg.save))
    with open_ledger(out, _card(cfg, detector)) as ledger:
        session = _Session(cfg, scorer, root, ledger)
        try:
            session.score_all(groups)
        except KeyboardInterrupt:
            if not cfg.watch:
                raise
        ledger.finish(None if cfg.watch else session.versions.values())
        session.summary()
    return UNREADABLE if ledger.unreadable else 0


class _Session:
    """One call of `src.predict`: what scores, what is kept, what is said."""

    def __init__(self, cfg: DictConfig, scorer: Scorer, root: Path, ledger: Ledger) -> None:
        self.cfg, self.scorer, self.root, self.ledger = cfg, scorer, root, ledger
        self.console = Console()
        normal = SavedRun(scorer.detector.directory).calibration()
        known = [] if normal is None else normal.image.tolist()
        self.monitor = DriftMonitor(known, cfg.drift.window, cfg.drift.alpha)
        self.versions: dict[str, Version] = {}  # of every image of this call, by path

    def score_all(self, groups: Iterable[list[Path]]) -> None:
        """Score groups of images as they come."""
        with _progress(self.console) as progress:
            bar = progress.add_task("scoring", total=0)
            for group in groups:
                progress.update(bar, total=(progress.tasks[bar].total or 0) + len(group))
                todo = self._remaining(group)
                progress.advance(bar, len(group) - len(todo))
                for batch in self._scored(todo):
                    for found in batch:
                        self._keep(found)
                    progress.advance(bar, len(batch))
                self.ledger.list_unreadable()

    def _scored(self, paths: list[Path]) -> Iterator[list[Scored]]:
        """Results in the order of `paths`, from this process or from many."""
        cfg, read = self.cfg, self.scorer.detector.read
        if cfg.engine.name == "ray" and paths:
            yield from spread(paths, self.root, cfg)
            return
        for batch in decoded(paths, self.root, cfg.batch_size, cfg.decoders, read):
            yield self.scorer(batch)

    def _remaining(self, paths: list[Path]) -> list[Path]:
        """Images without a row, or changed since they got one."""
        present = {path: Version.of(path, name_below(self.root, path)) for path in paths}
        self.versions |= {version.path: version for version in present.values()}
        todo = [path for path in paths if present[path] not in self.ledger.rows]
        if len(todo) < len(paths):
            self.console.print(f"Continuing: {len(paths) - len(todo)} images are already scored.")
        return todo

    def _keep(self, found: Scored) -> None:
        self.ledger.add(found)
        self.versions[found.version.path] = found.version
        if not found.problem and (warning := self.monitor.update(found.score)):
            self.console.print(f"[yellow]{warning}")

    def summary(self) -> None:
        """Counts, the rule that decided, and where everything is."""
        rule, ledger = self.scorer.detector.threshold, self.ledger
        alarms = sum(row["decision"] == "1" for row in ledger.rows.values())
        self.console.print(
            f"{len(ledger.rows)} images scored, {alarms} alarms "
            f"(threshold {rule.image:.4g}, rule {rule.rule}); results in {shown(ledger.folder)}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        if ledger.unreadable:
            listing = shown(ledger.folder / "unreadable.csv")
            self.console.print(
                f"{len(ledger.unreadable)} files could not be read; see {listing}",
                markup=False, soft_wrap=True,
            )  # fmt: skip
        if ledger.rows and rule.image == float("inf"):
            self.console.print("The threshold is infinite, so no alarm is possible: calibrate.")


def _what(cfg: DictConfig) -> tuple[Path, Iterable[list[Path]]]:
    """Root folder and groups of images: one, or those that come while a folder is watched."""
    if not cfg.watch:
        root, paths = find_images(str(cfg.images))
        return root, [paths]
    folder = Path(str(cfg.images)).expanduser()
    if cfg.engine.name == "ray":
        raise ConfigError(
            "A watched folder is scored on this machine, as its images come.",
            found="watch=true engine=ray",
            do="leave engine=ray or watch=true out",
        )
    if not folder.is_dir():
        raise ConfigError(
            "watch=true needs a folder.", found=str(folder), do="create it or give another one"
        )
    return folder, watch(folder, cfg.watch_seconds, cfg.watch_idle_seconds)


def _keep_apart(out: Path, root: Path) -> None:
    """Refuse an `out` that is or holds the folder of the images: its pictures are no images."""
    if root.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"out={out} is or holds the folder of the images.",
            found=f"images in {root}",
            do="give results a folder of their own, such as out=predictions",
        )


def _card(cfg: DictConfig, detector: Detector) -> dict[str, Any]:
    """What the rows of one folder have in common."""
    return {
        "detector": detector.identity(),
        "images": os.path.abspath(Path(str(cfg.images)).expanduser()),  # noqa: PTH100
        "watch": bool(cfg.watch),
        "save": OmegaConf.to_container(cfg.save, resolve=True),
        "run": str(detector.directory.absolute()),
    }


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.speed:.1f} images/s"), TimeRemainingColumn(), console=console,
        disable=not console.is_terminal,
    )  # fmt: skip
