"""Batches of image files in, rows and pictures out: what one process does for `src.predict`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from src.deployment.ledger import Scored, Version
from src.deployment.pictures import PictureWriter
from src.detector import Detection, Detector
from src.errors import DataError, GoodpartsError
from src.files import shown

Read = Callable[[Path], Image.Image]


class Loaded(NamedTuple):
    """An image that was read, or the reason why not."""

    version: Version
    image: Image.Image | None
    problem: str = ""


class Scorer:
    """Scores what was read and draws its pictures; needs no other process."""

    def __init__(self, detector: Detector, writer: PictureWriter) -> None:
        self.detector, self.writer = detector, writer

    def __call__(self, batch: Sequence[Loaded]) -> list[Scored]:
        """One result for each image of `batch`, in its order."""
        return [
            Scored(item.version, item.problem) if found is None else self._keep(item, found)
            for item, found in self._detect(batch)
        ]

    def _keep(self, item: Loaded, found: Detection) -> Scored:
        assert item.image is not None
        self.writer.write(item.version.path, item.image, found)
        return Scored(
            item.version, "", found.score, found.alarm, float(found.anomaly_map.max()),
            float(found.mask.mean()),
        )  # fmt: skip

    def _detect(self, batch: Sequence[Loaded]) -> list[tuple[Loaded, Detection | None]]:
        """Detections of a batch; an image the transform refuses is listed, not fatal."""
        images = [item.image for item in batch if item.image is not None]
        try:
            found = iter(self.detector.detect(images) if images else [])
        except DataError as error:
            if len(batch) == 1:
                return [(Loaded(batch[0].version, None, one_line(error)), None)]
            return [pair for item in batch for pair in self._detect([item])]  # find the culprit
        return [(item, None if item.image is None else next(found)) for item in batch]


def decoded(
    paths: Sequence[Path], root: Path, batch_size: int, decoders: int, read: Read
) -> Iterator[list[Loaded]]:
    """Batches of images, which `read` opens in threads up to two batches ahead."""
    with ThreadPoolExecutor(max_workers=max(1, decoders)) as pool:
        ahead: deque[Future[Loaded]] = deque()
        queue = iter(paths)
        batch: list[Loaded] = []
        while True:
            while len(ahead) < 2 * batch_size and (path := next(queue, None)) is not None:
                ahead.append(pool.submit(load, path, root, read))
            if not ahead:
                break
            batch.append(ahead.popleft().result())
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def load(path: Path, root: Path, read: Read) -> Loaded:
    """Read one image. Its version is taken first: a change while reading is seen next time."""
    version = Version.of(path, name_below(root, path))
    try:
        return Loaded(version, read(path))
    except DataError as error:
        return Loaded(version, None, one_line(error))


def name_below(root: Path, path: Path) -> str:
    """Path below the common root, with forward slashes on every system."""
    absolute, base = path.absolute(), root.absolute()
    return shown(absolute.relative_to(base) if absolute.is_relative_to(base) else path)


def one_line(error: GoodpartsError) -> str:
    """An error as a cell of a table."""
    return f"{error.what} Found: {error.found}. {error.do}"
