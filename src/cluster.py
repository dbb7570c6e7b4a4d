"""Ray for whatever needs many processes: one of our own on this machine, or a cluster."""

import logging
import os
from typing import Any, Self

from omegaconf import DictConfig

from src.errors import ConfigError

STORE = 80 * 2**20  # bytes; ours: Ray's least is 75 MiB, and only short texts pass through it


class Cluster:
    """The nodes of `engine.address`, or this machine; ConfigError: no Ray, no room for a job."""

    def __init__(self, cfg: DictConfig) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        here: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE}
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            import ray

            ray.init(cfg.address or "local", **quiet, **({} if cfg.address else here))
        except ImportError as error:
            what, do = "Ray runs many jobs, and it is not installed.", "pip install -e '.[many]'"
            raise ConfigError(what, found=str(error), do=do) from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            found = f"engine.address={cfg.address}: {error}"
            do = "check the address with `ray status`, or unset RAY_ADDRESS"
            raise ConfigError("There is no Ray to work with.", found=found, do=do) from error
        self.ray: Any = ray
        nodes = self._nodes()
        gpus = any(node.get("GPU") for node in nodes) if cfg.gpus is None else cfg.gpus
        cpus = min(cfg.cpus, max(node.get("CPU", 0) for node in nodes))
        self.share = {"CPU": float(cpus), "GPU": float(gpus)}  # of one job
        if not self.places():
            ray.shutdown()
            found = f"engine.cpus={cfg.cpus} engine.gpus={cfg.gpus}, {len(nodes)} nodes"
            do = "lower engine.cpus or engine.gpus"
            raise ConfigError("No node has room for a job.", found=found, do=do)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End our own Ray, or leave the cluster; what still runs ends with it."""
        self.ray.shutdown()

    def places(self) -> int:
        """How many jobs the nodes can run at a time."""
        wanted = [(kind, share) for kind, share in self.share.items() if share]
        return sum(
            min(int(node.get(kind, 0) / share) for kind, share in wanted) for node in self._nodes()
        )

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
