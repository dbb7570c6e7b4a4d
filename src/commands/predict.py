"""Score any number of images with constant memory and write what was found.

An interrupted call continues where it stopped, a repeated one scores what is new or was changed.
`scores.csv` has a row for each image; of a watched folder, for each version of a file.
"""

import math
import os
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.stats import false_discovery_control, ks_2samp

from src.deployment.inbox import find_images, watch
from src.deployment.ledger import Ledger, Version, open_ledger
from src.deployment.scoring import Scorer, spread
from src.detector import Detector
from src.errors import ConfigError
from src.evaluation.threshold import conformal_p
from src.files import shown, write_rows
from src.result import Calibration, NormalScores

UNREADABLE = 3  # exit code: some files could not be read
MIN_CALIBRATION = 20  # ours: below this the test of drift has no power and its p-value no meaning


def predict_images(cfg: DictConfig) -> int:
    """Score `cfg.images` with `cfg.run` into `cfg.out`; the exit code (0, or 3: unreadable)."""
    out, (root, groups) = Path(cfg.out), _images_of(cfg)
    if root.resolve().is_relative_to(out.resolve()):
        what = f"out={out} is or holds the folder of the images."
        do = "give results a folder of their own, such as out=predictions"
        raise ConfigError(what, found=f"images in {root}", do=do)
    detector = Detector.load(Path(cfg.run), cfg.device, cfg.category)
    scorer, console = Scorer(detector, out, root, cfg.save), Console()
    card = {  # what the rows of one folder have in common
        "detector": detector.identity(),
        "images": os.path.abspath(str(cfg.images)),  # noqa: PTH100
        "watch": bool(cfg.watch),
        "save": OmegaConf.to_container(cfg.save, resolve=True),
        "run": str(detector.run.directory.absolute()),
    }
    with open_ledger(out, card) as ledger:
        versions: dict[str, Version] = {}  # of every image of this call, by path
        try:
            _score_all(cfg, groups, scorer, ledger, versions, console)
        except KeyboardInterrupt:
            if not cfg.watch:
                raise
        ledger.finish(None if cfg.watch else versions.values())
    normal = detector.run.calibration()
    rule, alarms = detector.threshold, sum(row["decision"] == "1" for row in ledger.rows.values())
    said = [
        f"{len(ledger.rows)} images scored, {alarms} alarms (threshold {rule.image:.4g}, "
        f"rule {rule.rule}); results in {shown(out)}"
    ]
    if normal and ledger.rows and not cfg.watch:
        said.append(_screen(normal, list(ledger.rows.values()), cfg.false_discoveries, out))
    if count := len(ledger.unreadable):
        said.append(f"{count} files could not be read; see {shown(out / 'unreadable.csv')}")
    if ledger.rows and rule.image == float("inf"):
        said.append("The threshold is infinite, so no alarm is possible: calibrate.")
    console.print(*said, sep="\n", markup=False, soft_wrap=True)
    return UNREADABLE if ledger.unreadable else 0


def _screen(normal: NormalScores, rows: Sequence[dict[str, str]], level: float, out: Path) -> str:
    """Write screening.csv, the most conspicuous image first; the sentence that sums it up.

    Benjamini and Hochberg: on average a share `level` of the discoveries or less are good parts.
    This holds for conformal p-values of held-out calibration scores (Bates et al. 2023, theorem 2).
    """
    rows = sorted(rows, key=lambda row: -float(row["score"]))
    p_values = conformal_p(normal, [float(row["score"]) for row in rows])
    adjusted = false_discovery_control(p_values)  # the level from which on it is a discovery
    write_rows(out / "screening.csv", [
        {"path": row["path"], "score": row["score"], "p_value": p, "adjusted": q,
         "discovery": int(q <= level)}
        for row, p, q in zip(rows, p_values.tolist(), adjusted.tolist(), strict=True)
    ])  # fmt: skip
    n, found = len(normal.image), int((adjusted <= level).sum())
    fewest = math.ceil(len(rows) / (level * (n + 1)))  # with the least p-value, 1 / (n + 1)
    limit = f"fewer than {fewest} never can" if fewest <= len(rows) else "none can"
    way = "" if normal.way is Calibration.held_out else f"; not proven for {normal.way} scores"
    return (
        f"{found} of {len(rows)} images stand out at {100 * level:g} % false discoveries "
        f"({limit} with {n} calibration scores{way}): {shown(out / 'screening.csv')}"
    )


def _images_of(cfg: DictConfig) -> tuple[Path, Iterable[list[Path]]]:
    """Root folder and groups of images: one, or those that come while a folder is watched."""
    if not cfg.watch:
        root, paths = find_images(str(cfg.images))
        return root, [paths]
    folder = Path(str(cfg.images))
    if cfg.engine.name == "ray":
        what = "A watched folder is scored on this machine, as its images come."
        do = "leave engine=ray or watch=true out"
        raise ConfigError(what, found="watch=true engine=ray", do=do)
    if not folder.is_dir():
        raise ConfigError(
            "watch=true needs a folder.", found=str(folder), do="create it or give another one"
        )
    return folder, watch(folder, cfg.watch_seconds, cfg.watch_idle_seconds)


def _score_all(
    cfg: DictConfig, groups: Iterable[list[Path]], scorer: Scorer, ledger: Ledger,
    versions: dict[str, Version], console: Console,
) -> None:  # fmt: skip
    """Score groups of images as they come: those without a row, or changed since they got one."""
    normal = scorer.detector.run.calibration()
    known = [] if normal is None else normal.image.tolist()
    monitor = DriftMonitor(known, cfg.drift.window, cfg.drift.alpha)
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.speed:.1f} images/s")
    with Progress(*columns, TimeRemainingColumn(), console=console,
                  disable=not console.is_terminal) as progress:  # fmt: skip
        bar = progress.add_task("scoring", total=0)
        for group in groups:
            present = {path: scorer.version(path) for path in group}
            versions |= {version.path: version for version in present.values()}
            todo = [path for path in group if present[path] not in ledger.rows]
            if done := len(group) - len(todo):
                console.print(f"Continuing: {done} images are already scored.")
            progress.update(bar, total=(progress.tasks[bar].total or 0) + len(group), advance=done)
            if cfg.engine.name == "ray" and todo:
                batches = spread(todo, scorer.root, cfg)
            else:
                batches = scorer.batches(todo, cfg.batch_size, cfg.decoders)
            for batch in batches:
                for found in batch:
                    ledger.add(found)
                    versions[found.version.path] = found.version
                    if not found.problem and (warning := monitor.update(found.score)):
                        console.print(f"[yellow]{warning}")
                progress.advance(bar, len(batch))
            ledger.list_unreadable()


class DriftMonitor:
    """Has the camera, the light or the product changed since calibration?

    A two-sample Kolmogorov-Smirnov test compares a sliding window of live scores with those of the
    calibration images, once per half window, at level `alpha`. It sees any change, also a fall of
    scores (a lens cap gives very regular images) and a burst of real defects.
    """

    def __init__(self, calibration: Sequence[float], window: int, alpha: float) -> None:
        self.calibration = np.asarray(calibration, dtype=np.float64)
        self.alpha = alpha
        self._live: deque[float] = deque(maxlen=window)
        self._step, self._seen = window // 2 or 1, 0

    def update(self, score: float) -> str | None:
        """Take one live score; a warning when the window has just failed its test."""
        self._live.append(score)
        self._seen += 1
        full = len(self._live) == self._live.maxlen and self._seen % self._step == 0
        if not full or len(self.calibration) < MIN_CALIBRATION:
            return None
        outcome = ks_2samp(self._live, self.calibration)
        if outcome.pvalue >= self.alpha:
            return None
        now, then = float(np.median(self._live)), float(np.median(self.calibration))
        return (
            f"Drift: the last {len(self._live)} scores are {'higher' if now > then else 'lower'} "
            f"than at calibration (median {now:.4g}, was {then:.4g}; Kolmogorov-Smirnov "
            f"D={outcome.statistic:.2f}, p={outcome.pvalue:.1g}). "
            "Look at recent images: new light, focus, product or many defects. "
            "If the change is wanted, fit again with images of today."
        )
