"""Good parts that were confirmed later join the training images of a finished run.

It is the same experiment once more: a bank that only grew would depend on the order of images.
"""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from src.commands.compare import compare_runs
from src.composing import compose_checked
from src.data.images import read_sample
from src.data.record import categories_of, list_record, list_samples, with_data_at
from src.data.samples import DEFECTIVE, NORMAL
from src.errors import ConfigError, DataError
from src.evaluation.comparison import match
from src.experiment import Result, run_experiment
from src.grammar import literal
from src.saved_run import SavedRun

log = logging.getLogger(__name__)

_INDEX = "src.data.confirmed.index_with_confirmed"


def learn_images(cfg: DictConfig) -> Result:
    """A new run from the run `cfg.run` and the good parts in the folder `cfg.images`."""
    before = SavedRun(Path(cfg.run))
    before.metrics()  # fails early on an unfinished run
    config = with_data_at(before.config(), cfg.data.root)
    if len(names := categories_of(config.data)) > 1:
        what = "Nobody knows of which category the confirmed parts are."
        do = "move them to the good images of their category, and run the experiment again"
        raise ConfigError(what, found=f"a run of {', '.join(names)}", do=do)
    folder = Path(str(cfg.images)).absolute()
    wider = with_confirmed(config, folder)
    if changed := before.record().difference(list_record(config.data)):
        log.warning("The data of %s changed since: %s.", before.directory, changed)
    known = {sample.image_path for sample in list_samples(config.data)}
    new = [sample for sample in list_samples(wider.data) if sample.image_path not in known]
    if not new:
        what, do = "There is nothing to learn.", "give a folder with other pictures of good parts"
        raise DataError(what, found=f"the run was made with every picture in {folder}", do=do)
    for sample in new:  # every one is read once, so none fails later
        read_sample(sample)
    above = before.directory.absolute().parents  # <runs>/<model>/<data>/<category>
    at_home = len(above) > 3 and above[2].name == config.model.name
    wider.runs_dir = literal(str(cfg.out or (above[3] if at_home else config.runs_dir)))
    result = run_experiment(wider)
    earlier = before.read_json("manifest.json").get("learnt", [])
    step = {"from": before.directory.name, "pictures": len(new), "folder": str(folder)}
    result.run.add_facts({"learnt": [*earlier, step]})
    places = [f"run_a={before.directory}", f"run_b={result.run.directory}"]
    compare_runs(compose_checked("compare", [*places, "pictures=0"]))
    a, b = (run.read_json("model/threshold.json")["image"] for run in (before, result.run))
    told = [f"{len(new)} confirmed pictures learnt: threshold {a:.4g} -> {b:.4g}"]
    images = match(before.scores(), result.run.scores()).images
    for name, label in (("false alarms", NORMAL), ("defects found", DEFECTIVE)):
        some = images[images.label_a == label]
        told.append(f"{name} {some.decision_a.sum()} -> {some.decision_b.sum()} of {len(some)}")
    Console(highlight=False).print("; ".join(told), soft_wrap=True)
    return result


def with_confirmed(config: DictConfig, folder: Path) -> DictConfig:
    """The config of a run with the pictures in `folder` as further training images."""
    index: Any = OmegaConf.to_container(config.data.index, resolve=True)
    if index["_target_"] != _INDEX:
        index = {"_target_": _INDEX, "_partial_": True, "base": index, "folders": []}
    index["folders"] = list(dict.fromkeys([*index["folders"], str(folder)]))
    wider = config.copy()
    wider.data.index = literal(index)
    wider.force = False
    return wider
