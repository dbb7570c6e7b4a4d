"""Repeat a finished run from its own config and compare every number: `src.run replay=<folder>`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from src.errors import ConfigError
from src.experiment import run_experiment
from src.grammar import literal
from src.saved_run import SavedRun

DIFFERENT = 1  # exit code
_TIMING = ("speed/", "fit/")  # these depend on what else the machine does


@dataclass(frozen=True)
class Comparison:
    """Two runs of one config."""

    metrics: dict[str, tuple[float, float]]  # key: before, now
    changed: dict[str, tuple[str, str]]  # facts of the manifest that differ: before, now
    score_change: float  # largest difference of an image score; NaN: other images

    @property
    def different(self) -> dict[str, tuple[float, float]]:
        """Metrics that are not identical; NaN equals NaN."""
        return {key: pair for key, pair in self.metrics.items() if not _same(*pair)}

    @property
    def identical(self) -> bool:
        """Whether every metric and every image score is the same to the last bit."""
        return not self.different and self.score_change == 0


def replay_run(cfg: DictConfig) -> int:
    """Repeat the run `cfg.replay`; exit code 0 when nothing changed, 1 otherwise."""
    comparison, repeated = replay(Path(cfg.replay), cfg)
    print_comparison(comparison, Path(cfg.replay), repeated)
    return 0 if comparison.identical else DIFFERENT


def replay(folder: Path, cfg: DictConfig) -> tuple[Comparison, Path]:
    """Run the config of `folder` again, below `cfg.runs_dir`/replays.

    Keys given on the command line, such as data.root or hardware, replace those of the run.
    SavedModelError when `folder` is not a finished run. Returns the comparison and the new folder.
    """
    before = SavedRun(folder)
    before.metrics()  # fails early on an unfinished run
    before.record()
    again = replayed_config(before.config(), cfg)
    result = run_experiment(again)
    return compare_runs(before, result.run), result.run.directory


def replayed_config(saved: DictConfig, cfg: DictConfig) -> DictConfig:
    """The run's own config with the places of today and the words of the command line."""
    config = saved.copy()
    with open_dict(config):
        config.runs_dir = str(Path(cfg.runs_dir) / "replays")
        config.force, config.replay, config.debug = True, None, cfg.debug
        if not Path(str(config.data.root)).exists() and cfg.data.name == config.data.name:
            config.data.root = literal(cfg.data.root)  # the run comes from another machine
    for key in command_line_keys():
        if OmegaConf.select(config, key, default=_ABSENT) is _ABSENT:
            raise ConfigError(
                f"{key} cannot be changed in a replay.",
                found=f"the run's config has no {key}",
                do="give only keys that the run has, such as data.root or hardware.num_workers",
            )
        OmegaConf.update(config, key, literal(OmegaConf.select(cfg, key)))
    return config


def command_line_keys() -> list[str]:
    """Keys of this program's command line except `replay` and where runs go."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    keys = [word.split("=", 1)[0].lstrip("+~") for word in HydraConfig.get().overrides.task]
    return [key for key in keys if key not in ("replay", "runs_dir", "force", "debug")]


def compare_runs(before: SavedRun, now: SavedRun) -> Comparison:
    """Metrics, image scores and manifest facts of two runs."""
    old, new = before.metrics(), now.metrics()
    keys = [key for key in {**old, **new} if not key.startswith(_TIMING)]
    changed = _changed(before.read_json("manifest.json"), now.read_json("manifest.json"))
    if difference := before.record().difference(now.record()):
        changed["data"] = "as fitted on", difference
    return Comparison(
        metrics={key: (old.get(key, math.nan), new.get(key, math.nan)) for key in keys},
        changed=changed,
        score_change=_score_change(before, now),
    )


def print_comparison(comparison: Comparison, before: Path, now: Path) -> None:
    """The verdict; then what differs, and what may have caused it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    total = len(comparison.metrics)
    if comparison.identical:
        console.print(f"identical: {total} metrics and every image score", soft_wrap=True)
    else:
        console.print(
            f"DIFFERENT: {len(comparison.different)} of {total} metrics; largest change of an "
            f"image score {comparison.score_change:.3g}",
            soft_wrap=True,
        )
        table = Table("metric", "before", "now", "difference", box=None)
        for key, (old, new) in comparison.different.items():
            table.add_row(key, f"{old:.6f}", f"{new:.6f}", f"{new - old:+.2e}")
        console.print(table)
    for name, (old_fact, new_fact) in comparison.changed.items():
        console.print(f"changed  {name}: {old_fact} -> {new_fact}", markup=False, soft_wrap=True)
    console.print(f"before {before}\nnow    {now}", soft_wrap=True)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Facts of two manifests that differ, without the time and the command."""
    old, new = _flat(before), _flat(now)
    return {
        name: (str(old.get(name)), str(new.get(name)))
        for name in {**old, **new}
        if old.get(name) != new.get(name) and name not in ("started", "command")
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _score_change(before: SavedRun, now: SavedRun) -> float:
    old, new = (run.scores().set_index("path").score for run in (before, now))
    if list(old.index) != list(new.index):
        return math.nan
    return float((new - old).abs().max()) if len(old) else 0.0


def _same(before: float, now: float) -> bool:
    return before == now or (math.isnan(before) and math.isnan(now))


_ABSENT = object()
