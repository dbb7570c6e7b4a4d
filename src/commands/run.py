"""`python -m src.run`: one experiment, or with replay=RUN the repetition of a finished one."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from src.errors import ConfigError
from src.experiment import run_experiment
from src.grammar import literal
from src.saved_run import SavedRun

_OF_REPLAY = ("replay", "runs_dir", "force", "debug")


def run(cfg: DictConfig) -> int:
    """Run the experiment of `cfg`, or repeat a finished one with replay=<run folder>."""
    if cfg.replay:
        return replay_run(cfg)
    run_experiment(cfg)
    return 0


def replay_run(cfg: DictConfig) -> int:
    """Repeat the run `cfg.replay` below `cfg.runs_dir`/replays and compare every number.

    Keys given on the command line, such as data.root or hardware, replace those of the run. The
    exit code is 0 when nothing changed.
    """
    from src.commands.compare import say_exactly  # its charts would delay every other run

    before = SavedRun(Path(cfg.replay))
    before.metrics()  # fails early on an unfinished run
    before.record()
    return say_exactly(before, run_experiment(replayed_config(before.config(), cfg)).run)


def replayed_config(saved: DictConfig, cfg: DictConfig) -> DictConfig:
    """The run's own config with the places of today and the words of the command line."""
    config = saved.copy()
    with open_dict(config):
        config.runs_dir = str(Path(cfg.runs_dir) / "replays")
        config.force, config.replay, config.debug = True, None, cfg.debug
        if not Path(str(config.data.root)).exists() and cfg.data.name == config.data.name:
            config.data.root = literal(cfg.data.root)  # the run comes from another machine
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    absent = object()
    for key in (word.split("=", 1)[0].lstrip("+~") for word in words):
        if key in _OF_REPLAY:
            continue
        if OmegaConf.select(config, key, default=absent) is absent:
            do = "give only keys that the run has, such as data.root or hardware.num_workers"
            found = f"the run's config has no {key}"
            raise ConfigError(f"{key} cannot be changed in a replay.", found=found, do=do)
        OmegaConf.update(config, key, literal(OmegaConf.select(cfg, key)))
    return config
