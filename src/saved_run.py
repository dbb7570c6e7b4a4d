"""The folder of one run: where it is, whether it is finished, how to write it safely.

`runs/<model>/<data>/<category>/seed<k>-<hash>/`. Everything is written to a `.partial` file and
renamed; `metrics.json` comes last, so its presence means that the run is finished. A run killed at
any moment is completed by starting the same command again.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from src.errors import SavedModelError
from src.files import write_rows, write_text
from src.grammar import literal

if TYPE_CHECKING:
    from src.models.base import NormalScores

#: Raised when a change of the code changes results, so that old runs are not taken for new ones.
RESULTS_VERSION = 1

#: Config that changes where or how fast a run goes, but not what comes out.
_NOT_IDENTITY = (
    "runs_dir", "force", "debug", "replay", "logger", "report", "hydra",
    "hardware.num_workers", "hardware.threads", "data.download", "data.archives",
    "data.prepare", "data.cache", "evaluation.memory_gb", "evaluation.latency_images",
)  # fmt: skip


def config_hash(cfg: DictConfig) -> str:
    """Ten hex digits that identify what a config computes, on any machine."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    for dotted in _NOT_IDENTITY:
        _remove(plain, dotted.split("."))
    if plain.get("data", {}).get("name") != "folder":
        _remove(plain, ["data", "root"])  # a named data set is the same wherever it lies
    text = json.dumps([RESULTS_VERSION, plain], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_directory(cfg: DictConfig) -> Path:
    """The folder of the run that `cfg` describes; it may not exist yet."""
    category = cfg.data.get("category") or Path(str(cfg.data.get("root") or "all")).name
    parts = [cfg.model.name, cfg.data.name, category, f"seed{cfg.seed}-{config_hash(cfg)}"]
    return Path(cfg.runs_dir).expanduser().joinpath(*(_safe(str(part)) for part in parts))


@dataclass(frozen=True)
class SavedRun:
    """Reads and writes one run folder."""

    directory: Path

    @property
    def finished(self) -> bool:
        """Whether metrics.json is there."""
        return (self.directory / "metrics.json").is_file()

    @property
    def fitted(self) -> bool:
        """Whether the fitted model is there, so that an interrupted run need not fit again."""
        return (self.directory / "fit.json").is_file()

    def has(self, name: str) -> bool:
        """Whether a file of the folder exists."""
        return (self.directory / name).is_file()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder alone; a second process waits, then finds the run finished."""
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Another process is at work in {self.directory}; waiting for it.")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def start(self, cfg: DictConfig, manifest: Mapping[str, Any], *, force: bool) -> None:
        """Prepare the folder: config and manifest first; `force` empties it.

        Half-written files of a killed process go: the lock says that nobody is writing them.
        """
        for path in list(self.directory.rglob("*.partial")):
            path.unlink()
        if force and self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.name not in (".lock", "log.txt"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in ("model", "checkpoints", "figures"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        write_text(self.directory / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        self.write_json("manifest.json", manifest)

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Add to manifest.json what is known only after the start."""
        self.write_json("manifest.json", self.read_json("manifest.json") | dict(facts))

    def config(self) -> DictConfig:
        """The resolved config of this run."""
        path = self.directory / "config.yaml"
        try:
            plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            return cast(DictConfig, OmegaConf.create(literal(plain)))  # a name may hold ${
        except (OSError, ValueError) as error:
            raise self._unusable(f"{path.name}: {error}") from error

    def metrics(self) -> dict[str, float]:
        """The metrics of a finished run; NaN where a metric is undefined."""
        values = self.read_json("metrics.json")
        return {key: math.nan if value is None else value for key, value in values.items()}

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder."""
        try:
            return cast(dict[str, Any], json.loads((self.directory / name).read_text()))
        except (OSError, ValueError) as error:
            raise self._unusable(f"{name}: {error}") from error

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file atomically; NaN becomes null."""
        clean = {
            k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()
        }
        write_text(self.directory / name, json.dumps(clean, indent=2, default=str) + "\n")

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a CSV file atomically, one dict a row."""
        write_rows(self.directory / name, rows)

    def write_calibration(self, normal: NormalScores | None) -> None:
        """Keep the scores a threshold is set with: for other rules and drift warnings later."""
        if normal is not None:
            pairs = zip(normal.image.tolist(), normal.map_max.tolist(), strict=True)
            rows = [{"score": score, "map_max": highest} for score, highest in pairs]
            self.write_rows("calibration.csv", rows)

    def calibration(self) -> NormalScores | None:
        """What `write_calibration` kept; None: the run had no normal scores to keep."""
        import torch

        from src.models.base import NormalScores

        path = self.directory / "calibration.csv"
        if not path.is_file():
            return None
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                rows = [(float(r["score"]), float(r["map_max"])) for r in csv.DictReader(stream)]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise self._unusable(f"{path.name}: {type(error).__name__}: {error}") from error
        values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 2)
        return NormalScores(values[:, 0], values[:, 1])

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Declare the run finished."""
        self.write_json("metrics.json", metrics)

    def _unusable(self, found: str) -> SavedModelError:
        return SavedModelError(
            f"{self.directory} is not the folder of a usable run.",
            found=found,
            do="give the path that `python -m src.run` prints at its end",
        )


def _remove(tree: dict[str, Any], keys: list[str]) -> None:
    for key in keys[:-1]:
        tree = tree.get(key) or {}
    tree.pop(keys[-1], None)


def _safe(name: str) -> str:
    """A name that is one folder on every file system."""
    return re.sub(r"[^\w.+-]+", "_", name).strip(".") or "unnamed"
