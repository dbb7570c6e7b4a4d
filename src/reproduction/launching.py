"""The same grid on other machines: workers placed by Hydra's joblib, submitit or Ray launcher.

Each worker is this program again, working from the shared run folder; leases keep any two from
doing the same job. So the number of workers, their failures and their order do not matter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from src.errors import ConfigError
from src.reproduction.slots import THREAD_VARIABLES, usable_cores, visible_gpus
from src.reproduction.working import work

LOCAL = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
SAME_MACHINE = ("joblib", "submitit_launcher.LocalLauncher")


def chosen_launcher() -> str | None:
    """The launcher named on the command line; None: the processes of this machine."""
    if not HydraConfig.initialized():
        return None
    target = str(HydraConfig.get().launcher._target_)
    return None if target == LOCAL else target


def launch_workers(cfg: DictConfig, count: int) -> list[str]:
    """Place `count` workers and wait for them; the messages of those that broke."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra

    if count < 1:
        raise ConfigError("workers must be at least 1.", found=str(count), do="set workers=8")
    hydra_instance = GlobalHydra.instance().hydra
    assert hydra_instance is not None  # inside hydra.main
    config = _sweep_config(cfg)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(
            config_loader=hydra_instance.config_loader, callbacks=Callbacks(config)
        ),
        task_function=work_as_one,
        config=config,
    )
    own = list(HydraConfig.get().overrides.task)
    words = [[*own, f"+worker={index}"] for index in range(count)]
    return _broken(launcher.launch(words, initial_job_idx=0))


def work_as_one(cfg: DictConfig) -> int:
    """The task of one worker, on whatever machine the launcher chose."""
    target = str(HydraConfig.get().launcher._target_)
    if any(name in target for name in SAME_MACHINE):
        confine_to_share(int(cfg.worker), int(cfg.workers))
    with open_dict(cfg):
        cfg.slots = 1  # one process a worker; ask for more workers, not for bigger ones
    return len(work(cfg).failed)


def confine_to_share(worker: int, workers: int) -> None:
    """Give workers on one machine different GPUs, or their share of the cores."""
    gpus = visible_gpus()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
        return
    threads = str(max(1, usable_cores() // workers))
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, threads))


def _sweep_config(cfg: DictConfig) -> Any:
    """This program's config with its hydra node, as launchers want it."""
    from omegaconf import OmegaConf

    return OmegaConf.merge(OmegaConf.create({"hydra": HydraConfig.get()}), cfg)


def _broken(results: Sequence[JobReturn]) -> list[str]:
    messages = []
    for index, result in enumerate(results):
        if result.status != JobStatus.COMPLETED:
            messages.append(f"worker {index}: {result._return_value}")
    return messages
