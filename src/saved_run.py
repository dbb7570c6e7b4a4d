"""The folder of one run. `metrics.json` is written last: its presence means that it is finished.

A run killed at any moment is completed by the same command.
"""

import contextlib
import csv
import errno
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_type_hints
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from src.data.record import FILE_NAME as DATA
from src.data.record import DataRecord, place_of
from src.data.samples import DEFECTIVE, NORMAL
from src.errors import SavedModelError
from src.files import atomic, write_rows, write_text
from src.grammar import literal
from src.result import Calibration, NormalScores

if TYPE_CHECKING:
    from src.evaluation.pixels import PixelHistograms

SCORES, PIXELS = "scores.csv", "pixel_statistics.npz"
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # as NFS without lockd


class ScoreRow(NamedTuple):
    """What a run found for one test image: the columns of scores.csv, in their order."""

    path: str  # below the data root
    label: int  # 0 normal, 1 defective, -1 unknown
    defect: str  # folder of the defect type, "good" for normal images
    score: float  # raw units; higher is more anomalous
    decision: bool  # alarm at the threshold of the run
    map_max: float = math.nan  # highest value of the anomaly map
    split: str = "test"
    iou: float = math.nan  # of prediction and mask at the threshold, 0..1; NaN: no usable mask
    aupimo: float = math.nan  # share of its defect found while good images are all but unmarked
    image: str = ""  # what is in the image file, as a hash
    mask: str = ""  # the same of its mask; empty without one

    @property
    def outcome(self) -> str:
        """What the decision turned out to be, see `outcome`."""
        return outcome(self.label, self.decision)


def outcome(label: int, decision: bool) -> str:
    """Hit, miss, false alarm or correct pass; alarm or pass where there is no label."""
    if label == DEFECTIVE:
        return "hit" if decision else "miss"
    if label == NORMAL:
        return "false alarm" if decision else "correct pass"
    return "alarm" if decision else "pass"


@dataclass(frozen=True)
class SavedRun:
    """Reads and writes one run folder."""

    directory: Path

    @property
    def finished(self) -> bool:
        """Whether metrics.json is there."""
        return self.has("metrics.json")

    def has(self, name: str) -> bool:
        """Whether a file of the folder exists."""
        return (self.directory / name).is_file()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone, others wait; where there is no flock, a lock file serves."""
        self.directory.mkdir(parents=True, exist_ok=True)

        def hold(lock: BaseFileLock) -> BaseFileLock:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"Another process is at work in {self.directory}; waiting for it.")
                lock.acquire()
            return lock

        try:
            lock = hold(FileLock(self.directory / ".lock", fallback_to_soft=False))
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            soft = SoftFileLock(self.directory / ".lock-held")
            print(f"No flock on this file system; {soft.lock_file} is the lock, and may be deleted "
                  "if its process is gone.")  # fmt: skip
            lock = hold(soft)
        try:
            yield
        finally:
            lock.release()

    def start(self, cfg: DictConfig, manifest: Mapping[str, Any], *, force: bool) -> None:
        """Write config and manifest first; half-written files go, with `force` all others too."""
        for path in list(self.directory.rglob("*.partial")):
            path.unlink()
        if force and self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.name not in (".lock", ".lock-held", "log.txt"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in ("model", "checkpoints", "figures"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._write_config(_plain(cfg))
        self.write_json("manifest.json", manifest)

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Add to manifest.json what is known only after the start."""
        self.write_json("manifest.json", self.read_json("manifest.json") | dict(facts))

    def point_to_data(self, cfg: DictConfig) -> None:
        """Remember where the data of this run lies now, so that later commands find it."""
        saved, now = _plain(self.config()), _plain(cfg)
        if saved["data"]["root"] != now["data"]["root"]:
            depth = saved["data"].get("bit_depth")  # settled by the run
            self._write_config(saved | {"data": now["data"] | {"bit_depth": depth}})

    def config(self) -> DictConfig:
        """The resolved config of this run."""
        with self._reading("config.yaml") as path:
            plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            return cast(DictConfig, OmegaConf.create(literal(plain)))  # a name may hold ${

    def metrics(self) -> dict[str, float]:
        """The metrics of a finished run; NaN where a metric is undefined."""
        values = self.read_json("metrics.json")
        return {key: math.nan if value is None else value for key, value in values.items()}

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder."""
        with self._reading(name) as path:
            return cast(dict[str, Any], json.loads(path.read_text()))

    def record(self) -> DataRecord:
        """The images this run was made of."""
        if self.has("config.yaml") and not self.has(DATA):
            what = f"{self.directory} does not say which images it was fitted on."
            found = f"no {DATA}; an earlier version of this program wrote the folder"
            do = "run the experiment again; its results then lie in a folder of their own"
            raise SavedModelError(what, found=found, do=do)
        with self._reading(DATA):
            return DataRecord.from_rows(self.read_rows(DATA))

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file atomically; NaN becomes null."""
        clean = {key: None if value != value else value for key, value in values.items()}
        write_text(self.directory / name, json.dumps(clean, indent=2, default=str) + "\n")

    def read_rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file, one dict a row."""
        with self._reading(name) as path, path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a CSV file atomically, one dict a row."""
        write_rows(self.directory / name, rows)

    def write_scores(self, rows: Sequence[ScoreRow]) -> None:
        """Write scores.csv; a number that is NaN becomes an empty field."""
        table = (row._asdict() | {"decision": int(row.decision)} for row in rows)
        self.write_rows(SCORES, [{k: "" if v != v else v for k, v in row.items()} for row in table])

    def scores(self) -> pd.DataFrame:
        """scores.csv, the columns of `ScoreRow`; SavedModelError: one is missing or wrong."""
        kinds = get_type_hints(ScoreRow)
        numbers = {name: [""] for name, kind in kinds.items() if kind is float}
        with self._reading(SCORES) as path:
            table = pd.read_csv(  # keep_default_na: a folder may be called NA
                path, usecols=list(kinds), dtype=kinds | {"decision": int}, keep_default_na=False,
                na_values=numbers, float_precision="round_trip",
            )  # fmt: skip
            return table.astype({"decision": bool})

    def write_pixel_statistics(self, histograms: "PixelHistograms", paths: Sequence[str]) -> None:
        """Keep what pixel metrics are resampled from; row i is of the image `paths[i]`."""
        arrays: dict[str, Any] = histograms._replace(image=np.array(list(paths), str))._asdict()
        with atomic(self.directory / PIXELS) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    def pixel_statistics(self) -> "PixelHistograms | None":
        """What `write_pixel_statistics` kept; None: the run had no masks."""
        from src.evaluation.pixels import PixelHistograms

        if not self.has(PIXELS):
            return None
        with self._reading(PIXELS) as path, np.load(path, allow_pickle=False) as saved:
            return PixelHistograms(**{name: saved[name] for name in PixelHistograms._fields})

    def write_calibration(self, normal: NormalScores | None) -> None:
        """Keep the scores a threshold is set with: for other rules and drift warnings later."""
        if normal is not None:
            names = normal.categories or [""] * len(normal.paths)
            cells = normal.paths, normal.image.tolist(), normal.map_max.tolist(), names
            rows = [
                {
                    "path": path,
                    "score": score,
                    "map_max": top,
                    "way": normal.way.value,
                    "category": name,
                }
                for path, score, top, name in zip(*cells, strict=True)
            ]
            self.write_rows("calibration.csv", rows)

    def calibration(self) -> NormalScores | None:
        """What `write_calibration` kept; None: the run had no normal scores to keep."""
        import torch

        name = "calibration.csv"
        if not (rows := self.read_rows(name) if self.has(name) else []):
            return None
        with self._reading(name):
            score, top = (torch.tensor([float(r[x]) for r in rows]) for x in ("score", "map_max"))
            paths, names = ([row.get(x, "") for row in rows] for x in ("path", "category"))
            return NormalScores(score, top, Calibration(rows[0]["way"]), paths, names)

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Declare the run finished."""
        self.write_json("metrics.json", metrics)

    def _write_config(self, plain: dict[str, Any]) -> None:
        write_text(self.directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain)))

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        """A file of the folder; SavedModelError where what is done with it fails."""
        try:
            yield self.directory / name
        except (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
            raise SavedModelError(
                f"{self.directory} is not the folder of a usable run.",
                found=f"{name}: {type(error).__name__}: {error}",
                do="give the path that `python -m src.run` prints at its end, or run the "
                "experiment again with force=true",
            ) from error


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config with an absolute data.root: it must hold from any other folder."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    if (plain.get("data") or {}).get("root"):
        plain["data"]["root"] = str(place_of(cfg.data)[0])
    return plain
