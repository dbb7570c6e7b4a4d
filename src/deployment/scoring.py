"""Images in, rows and pictures out, for `src.predict`: in this process, or by Ray Data in many."""

import json
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from src.cluster import Cluster
from src.deployment.ledger import Scored, Version
from src.detector import Detection, Detector
from src.errors import DataError
from src.files import atomic, fitting, shown, write_text
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import overlay, save_png
from src.reporting.records import Picture

BATCHES = 16  # of a block, which an actor takes at a time; ours: seconds of work, few blocks

Readable = Image.Image | DataError  # an image that was read and fits, or why not


def read_fitting(detector: Detector, path: Path) -> Readable:
    """Read an image file and make sure that the network can take an image of its size."""
    try:
        image = detector.read(path)
        detector.transform.geometry((image.height, image.width))
    except DataError as error:
        return error
    return image


class Scorer:
    """Scores image files below `root`; draws what `save` names in the same folders of `out`."""

    def __init__(self, detector: Detector, out: Path, root: Path, save: DictConfig) -> None:
        self.detector, self.out, self.root, self.save = detector, out, root, save
        self.scale = ColourScale.of_run(detector.run)

    def batches(self, paths: Sequence[Path], size: int, decoders: int) -> Iterator[list[Scored]]:
        """Results in the order of `paths`; threads read the next batch while one is scored."""
        with ThreadPoolExecutor(max_workers=max(1, decoders)) as pool:
            parts = (paths[at : at + size] for at in range(0, len(paths), size))
            coming = (pool.map(self._load, part) for part in parts)
            batch = next(coming, None)
            while batch is not None:
                ahead = next(coming, None)  # begins to be read
                yield self._score(list(batch))
                batch = ahead

    def version(self, path: Path) -> Version:
        """What `path` is now, under its name below the root with forward slashes."""
        absolute, root = path.absolute(), self.root.absolute()
        below = absolute.relative_to(root) if absolute.is_relative_to(root) else path
        return Version.of(path, shown(below))

    def _load(self, path: Path) -> tuple[Version, Readable]:
        # the version first: a change while reading is seen next time
        return self.version(path), read_fitting(self.detector, path)

    def _score(self, batch: Sequence[tuple[Version, Readable]]) -> list[Scored]:
        good = [image for _, image in batch if not isinstance(image, DataError)]
        coming, rows = iter(self.detector.detect(good) if good else []), []
        for version, image in batch:
            if isinstance(image, DataError):
                rows.append(Scored(version, f"{image.what} Found: {image.found}. {image.do}"))
                continue
            found = next(coming)
            self._draw(version.path, image, found)
            highest, share = float(found.anomaly_map.max()), float(found.mask.mean())
            rows.append(Scored(version, "", found.score, found.alarm, highest, share))
        return rows

    def _draw(self, name: str, image: Image.Image, found: Detection) -> None:
        """Pictures at the size of the original."""
        if self.save.maps == "none" and not (self.save.masks or self.save.overlays):
            return
        size = (image.height, image.width)
        full = self.detector.to_original(found.anomaly_map, size)
        mask = self.detector.to_original(found.mask, size) > 0.5

        def target(kind: str, suffix: str = ".png") -> Path:
            # The original suffix stays in the name: a.png and a.jpg of one folder must not collide.
            return fitting(self.out / kind / f"{name}{suffix}")

        if self.save.maps == "npy":
            with atomic(target("maps", ".npy")) as partial, partial.open("wb") as file:
                np.save(file, full)
        elif self.save.maps == "png":
            # 16 bit between values fixed for the run, so that images compare
            low, span = self.scale.low, 2 * (self.scale.high - self.scale.low)
            facts = {"value": f"{low} + grey / 65535 * {span}", "low": low, "high": low + span}
            if not (told := self.out / "maps" / "scale.json").is_file():
                write_text(told, json.dumps(facts, indent=2) + "\n")
            grey = np.rint(np.clip((full - low) / span, 0, 1) * 65535)
            save_png(grey.astype(np.uint16), target("maps"), compress_level=1)
        if self.save.masks:
            save_png(mask, target("masks"), compress_level=1)
        if self.save.overlays:
            picture = Picture(np.asarray(image), full, segmentation=mask)
            save_png(overlay(picture, self.scale), target("overlays"), compress_level=1)


class Actor:
    """A loaded detector in a process of its own, on any node."""

    def __init__(self, run: str, out: str, root: str, cfg: DictConfig, threads: int) -> None:
        logging.disable(logging.INFO)  # the command itself has said which model it is
        torch.set_num_threads(threads)  # its share, whatever OMP_NUM_THREADS says to all
        detector = Detector.load(Path(run), cfg.device, cfg.category)
        self.cfg, self.scorer = cfg, Scorer(detector, Path(out), Path(root), cfg.save)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        """Paths as bytes, which any file name is, in; pickled results in their order out."""
        paths = [Path(os.fsdecode(path)) for path in block["path"]]
        batches = self.scorer.batches(paths, self.cfg.batch_size, self.cfg.decoders)
        return {"found": [pickle.dumps(found) for batch in batches for found in batch]}


def spread(paths: Sequence[Path], root: Path, cfg: DictConfig) -> Iterator[list[Scored]]:
    """Results in the order of `paths`, batch by batch, as `Scorer` gives them in one process.

    The nodes of a cluster see the images, the run and `cfg.out` at the same paths.
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
            batch_size=None,  # a whole block: the next batch is read while one is scored
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cluster.share["CPU"],
            num_gpus=cluster.share["GPU"],
            fn_constructor_args=(run, out, folder, cfg, max(1, int(cluster.share["CPU"]))),
        )
        for batch in found.iter_batches(batch_size=cfg.batch_size, prefetch_batches=0):
            yield [pickle.loads(one) for one in batch["found"]]  # made by our own actors
