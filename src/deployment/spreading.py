"""The scoring of `src.predict` by many processes: Ray Data maps batches of paths over detectors."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from src.cluster import Cluster
from src.deployment.ledger import Scored
from src.deployment.scoring import Scorer
from src.detector import Detector

BATCHES = 16  # of a block, which an actor takes at a time; ours: seconds of work, few blocks


class Actor:
    """A loaded detector in a process of its own, on any node."""

    def __init__(self, run: str, device: str, out: str, root: str, save: DictConfig) -> None:
        logging.disable(logging.INFO)  # the command itself has said which model it is
        self.score = Scorer(Detector.load(Path(run), device), Path(out), Path(root), save)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        """Paths as bytes, which any file name is, in; pickled results in their order out."""
        scored = self.score([Path(os.fsdecode(path)) for path in batch["path"]])
        return {"found": [pickle.dumps(found) for found in scored]}


def spread(paths: Sequence[Path], root: Path, cfg: DictConfig) -> Iterator[list[Scored]]:
    """Results in the order of `paths`, batch by batch, as `Scorer` gives them in one process.

    Args:
        paths: images; the nodes of a cluster see them, the run and `cfg.out` at the same paths.
        root: common folder of the images.
        cfg: the config of `src.predict` with engine=ray.
    """
    with Cluster(cfg.engine) as cluster:
        import ray.data  # after the check that Ray is there

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        places = cluster.places()
        workers = min(cfg.workers or places, places)
        rows: list[Any] = [{"path": os.fsencode(path.absolute())} for path in paths]
        blocks = max(len(rows) // (cfg.batch_size * BATCHES), min(len(rows), workers))
        run, out, folder = (str(Path(path).absolute()) for path in (cfg.run, cfg.out, root))
        found = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            Actor,
            batch_size=cfg.batch_size,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cluster.share["CPU"],
            num_gpus=cluster.share["GPU"],
            fn_constructor_args=(run, cfg.device, out, folder, cfg.save),
        )
        for batch in found.iter_batches(batch_size=cfg.batch_size, prefetch_batches=0):
            yield [pickle.loads(one) for one in batch["found"]]  # made by our own actors
