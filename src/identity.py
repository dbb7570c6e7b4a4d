"""Which run a config describes: its folder is named after everything its numbers depend on.

`runs/<model>/<data>/<category>/seed<k>-<config>-<content>`: the last part stands for the images,
masks and labels and for the weights it starts from. Places are not part of it: moved data keeps
its run.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from src.backbones.weight_files import weight_file
from src.contents import content_hashes
from src.data.record import list_record, place_of
from src.errors import ConfigError, DataError, WeightsError
from src.saved_run import SavedRun

#: Raised when a change of the code changes results, so that old runs are not taken for new ones.
RESULTS_VERSION = 3

_CONTENT = re.compile(r"(?<=-[0-9a-f]{10})-[0-9a-f]{10}$")

#: Config that changes where or how fast a run goes, but not what comes out. The images and the
#: weights count by content.
_NOT_IDENTITY = (
    "runs_dir", "force", "debug", "replay", "logger", "report", "hydra",
    "hardware.num_workers", "hardware.threads", "data.root", "data.download", "data.archives",
    "data.prepare", "data.about", "data.cache", "evaluation.memory_gb", "evaluation.latency_images",
    "backbone.weights", "calibration.dir", "data.calibration_dir", "data.roi",
)  # fmt: skip


def config_hash(cfg: DictConfig) -> str:
    """Ten hex digits that identify what a config computes, on any machine."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    for dotted in _NOT_IDENTITY:
        *nodes, last = dotted.split(".")
        tree = functools.reduce(lambda node, name: node.get(name) or {}, nodes, plain)
        tree.pop(last, None)
    if isinstance(plain.get("model", {}).get("weights"), str):
        del plain["model"]["weights"]
    plain["data"] = _without_places(plain["data"])
    return _digest([RESULTS_VERSION, plain])


def run_folder(cfg: DictConfig, data: str, weights: str) -> Path:
    """The folder of a run of `cfg` on data and weights with these fingerprints."""
    bare = _bare_folder(cfg)
    folder = bare.with_name(f"{bare.name}-{_digest([data, weights])}")
    if cfg.data.get("category") is None and not folder.exists():
        # Named after a folder of images that now has another name: still the same run.
        return next(bare.parent.parent.glob(f"*/{folder.name}"), folder)
    return folder


def locate_run(cfg: DictConfig, known: MutableMapping[str, str] | None = None) -> Path:
    """The folder of the run that `cfg` describes; it may not exist yet. Nothing is fetched.

    While its images or weights are not on this machine, the name lacks the part that stands for
    them; `newest_finished` then finds what was made elsewhere. `known`: fingerprints of data sets.
    """
    weights = weights_fingerprint(cfg)
    if weights is None:
        return _bare_folder(cfg)
    index = OmegaConf.to_container(cfg.data.index, resolve=True)
    own = [cfg.data.get(name) for name in ("calibration_dir", "exclude")]
    key = json.dumps([index, *own, *place_of(cfg.data)], default=str)
    known = {} if known is None else known
    if key not in known:
        try:
            known[key] = list_record(cfg.data).fingerprint
        except DataError:
            return _bare_folder(cfg)
    return run_folder(cfg, known[key], weights)


def without_content(folder: Path) -> Path:
    """A run folder named by its config only, equal for runs of one config on other data."""
    return folder.with_name(re.sub(_CONTENT, "", folder.name))


def same_config(folder: Path, having: str) -> list[Path]:
    """Runs with the config of `folder` that have this file, by its age, the newest last."""
    found = folder.parent.glob(f"{without_content(folder).name}-*/{having}")
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def newest_finished(folder: Path) -> Path:
    """The run itself; if its name lacks the content, the newest finished run of its config."""
    if without_content(folder) != folder:
        return folder
    return next(reversed(same_config(folder, "metrics.json")), folder)


def require_current(place: Path, advice: str) -> None:
    """ConfigError: a run below `place` was made of images or weights that have changed since."""
    known: dict[str, str] = {}
    for path in sorted(place.rglob("fit.json")):
        now = locate_run(SavedRun(path.parent).config(), known)
        if now != without_content(now) and now.name[-10:] != path.parent.name[-10:]:
            what = "The images or weights have changed since these runs."
            raise ConfigError(what, found=f"{path.parent} was fitted on others", do=advice)


def weights_fingerprint(cfg: DictConfig) -> str | None:
    """The contents of all weight files that a run of `cfg` starts from; None: not all are here."""
    try:
        files = list(_weight_files(cfg))
    except WeightsError:  # building the network says what is wrong
        return None
    paths = [path for path in files if isinstance(path, Path)]
    if None in files or not all(path.is_file() for path in paths):
        return None
    hashes = content_hashes(paths)
    return " ".join(hashes.get(str(path), str(path)) for path in files)


def _weight_files(cfg: DictConfig) -> Iterator[Path | str | None]:
    """A file, "random", or None where a network still has to be fetched."""
    for member in cfg.model.get("backbones") or [{}]:
        backbone = cast(DictConfig, OmegaConf.merge(cfg.backbone, member))
        names = backbone.get("networks") or ([backbone.name] if backbone.name else [])
        weights = backbone.get("weights")
        wanted = [weights] * len(names) if isinstance(weights, str) else weights or []
        for name, file in zip(names, wanted, strict=False):
            if file in ("auto", "random"):
                yield weight_file(name) if file == "auto" else "random"
            else:
                yield Path(file)
    if isinstance(cfg.model.get("weights"), str):  # a trained model to start from
        yield Path(cfg.model.weights)
    if cfg.data.get("roi"):
        yield place_of(cfg.data)[0] / cfg.data.roi


def _bare_folder(cfg: DictConfig) -> Path:
    last = f"seed{cfg.seed}-{config_hash(cfg)}"
    parts = map(str, (cfg.model.name, cfg.data.name, place_of(cfg.data)[1], last))
    # each is one folder on every file system
    names = (re.sub(r"[^\w.+-]+", "_", part).strip(".") or "unnamed" for part in parts)
    return Path(cfg.runs_dir).expanduser().joinpath(*names)


def _without_places(value: Any) -> Any:
    """A config tree with None in place of absolute paths."""
    if isinstance(value, Mapping):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return None if isinstance(value, str) and value.startswith(("/", "~")) else value


def _digest(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
