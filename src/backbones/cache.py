"""Frozen features kept between epochs: no augmentation, so they never change.

For U-Flow's MS-CaiT the features cost ten times the rest of a training step. An entry is keyed by
the pixels the network sees (hence by file, size and transform), the backbone's identity (name,
layers, weights) and the stored dtype, so a stale entry cannot be found.
"""

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from src.errors import only
from src.files import atomic

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
GB = 10**9


class FeatureCache:
    """Feature maps by image, in memory or on disk, up to a size.

    Args:
        place: `off`, `memory` (this process) or `disk` (shared between runs and processes).
        folder: where `disk` keeps its files; one subfolder per backbone and dtype.
        limit_gb: largest total size in 10^9 bytes. In memory, images beyond it are computed
            anew each time (dropping old ones would empty a cache that is read in turn). On disk,
            files of earlier runs make room, longest unused first.
        dtype: of the stored maps; float32 is exact.
        identity: of the backbone.
    """

    def __init__(
        self, place: str, folder: Path | str, limit_gb: float, dtype: str, identity: str
    ) -> None:
        only("model.cache.place", [place], ("off", "memory", "disk"))
        only("model.cache.dtype", [dtype], DTYPES)
        self.place, self.limit, self.dtype = place, int(limit_gb * GB), DTYPES[dtype]
        kind = hashlib.sha256(f"{identity}\n{dtype}".encode()).hexdigest()[:20]
        self.root, self.folder = Path(folder), Path(folder) / kind
        self._memory: dict[str, list[Tensor]] = {}  # (C, h, w) per scale
        self._keys: dict[int, str] = {}
        self._began, self._full = time.time(), False
        self._held = 0  # bytes in memory, or on disk when last counted
        if place == "disk":
            self.folder.mkdir(parents=True, exist_ok=True)
            for changed, _, path in _files(self.root, "partial"):
                if changed < self._began - 3600:  # more than any write takes: its run has died
                    path.unlink(missing_ok=True)
            self._held = sum(size for _, size, _ in _files(self.root))

    def fetch(
        self, image: Tensor, index: Tensor | None, compute: Callable[[Tensor], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Maps (B, C, h, w) of images (B, 3, H, W), computed only for images not seen before.

        `index` (B,): positions in a fixed list of samples; an image is hashed once per position.
        None: hash every time. Maps come back in float32 on the device of `image`.
        """
        if self.place == "off":
            return list(compute(image))
        positions = [None] * len(image) if index is None else index.tolist()
        keys = []
        for pixels, position in zip(image, positions, strict=True):
            keys.append(self._keys.get(position) or _digest(pixels))
            if position is not None:
                self._keys[position] = keys[-1]
        found = {key: self._read(key) for key in keys}
        missing = [row for row, key in enumerate(keys) if found[key] is None]
        if missing:
            fresh = compute(image if len(missing) == len(keys) else image[missing])
            for row, *maps in zip(missing, *fresh, strict=True):
                found[keys[row]] = kept = [scale.detach().to("cpu", self.dtype) for scale in maps]
                self._write(keys[row], kept)
        rows = [found[key] or [] for key in keys]
        return [
            torch.stack(scale).to(image.device, torch.float32, non_blocking=True)
            for scale in zip(*rows, strict=True)
        ]

    def forget_positions(self) -> None:
        """Call when the list behind `index` may have changed; entries stay valid."""
        self._keys.clear()

    def _read(self, key: str) -> list[Tensor] | None:
        if self.place == "memory":
            return self._memory.get(key)
        path = self.folder / f"{key}.safetensors"
        try:
            stored = load_file(path)
            os.utime(path)  # marks it as used
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("unreadable cache entry %s is computed anew: %s", path, error)
            path.unlink(missing_ok=True)
            return None
        return [stored[str(scale)] for scale in range(len(stored))]

    def _write(self, key: str, maps: list[Tensor]) -> None:
        if self._full:
            return
        try:
            if self.place == "memory":
                self._make_room(sum(scale.nbytes for scale in maps))
                self._memory[key] = [scale.clone() for scale in maps]
            else:
                raw = save({str(n): scale.contiguous() for n, scale in enumerate(maps)})
                self._make_room(len(raw))
                with atomic(self.folder / f"{key}.safetensors") as partial:
                    partial.write_bytes(raw)
        except OSError as error:
            self._full = True
            log.warning("feature cache: %s; further images are computed each time", error)

    def _make_room(self, size: int) -> None:
        """Book `size` bytes; on disk files that this run has not touched go, longest unused first.

        Raises:
            OSError: they do not fit.
        """
        if self._held + size > self.limit and self.place == "disk":
            files = sorted(_files(self.root))
            self._held = sum(held for _, held, _ in files)
            for used, held, path in files:
                if used >= self._began or self._held + size <= self.limit:
                    break
                path.unlink(missing_ok=True)
                self._held -= held
        if self._held + size > self.limit:
            raise OSError(f"{self.limit / GB:.1f} GB (model.cache.limit_gb) are used up")
        self._held += size


def _digest(pixels: Tensor) -> str:
    """Of the pixels as the network sees them, with their shape."""
    raw = pixels.detach().cpu().contiguous()
    total = hashlib.blake2b(repr((tuple(raw.shape), str(raw.dtype))).encode(), digest_size=20)
    total.update(raw.numpy().tobytes())
    return total.hexdigest()


def _files(root: Path, ending: str = "safetensors") -> list[tuple[float, int, Path]]:
    """(last use, bytes, path) of every entry below `root`; files may vanish while we look."""
    found = []
    for path in root.glob(f"*/*.{ending}"):
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            found.append((facts.st_mtime, facts.st_size, path))
    return found
