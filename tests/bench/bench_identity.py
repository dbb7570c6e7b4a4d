"""What the check of images costs at the start of a run: listing, asking for times, fingerprint.

Generated files in the layout of MVTec AD and as a folder of one's own; the first call hashes every
file, the second remembers. Goal: under 0.3 s for 1 000 images and under 5 s for 100 000.

    python -m tests.bench.bench_identity [1000 100000]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from omegaconf import OmegaConf

from src.data.record import list_record

_BYTES = 20_000  # a photograph of 256 px; reading counts in the first call only


def write_images(root: Path, count: int) -> None:
    """`count` files: nine tenths good parts, one tenth defective with masks."""
    block = os.urandom(_BYTES)
    for i in range(count):
        place = "train/good" if i % 10 else "test/hole"
        path = root / "part" / place / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(i.to_bytes(8) + block)
        if not i % 10:
            mask = root / "part" / "ground_truth" / "hole" / f"{i:06d}_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            mask.write_bytes(i.to_bytes(8))


def layouts(root: Path) -> dict[str, object]:
    """The same files as two kinds of data set."""
    own = {"_target_": "src.data.folder.index_folder", "_partial_": True, "normal_dir": "train",
           "abnormal_dir": "test", "mask_dir": "ground_truth", "normal_test_dir": None,
           "test_fraction": 0.2, "seed": 0}  # fmt: skip
    mvtec = {"_target_": "src.data.mvtec.index_mvtec", "_partial_": True}
    return {
        "mvtec": {"root": str(root), "category": "part", "index": mvtec},
        "folder": {"root": str(root / "part"), "category": None, "index": own},
    }


def main() -> None:
    """Print seconds of the first and of later calls."""
    for count in [int(word) for word in sys.argv[1:]] or [1000, 100_000]:
        with tempfile.TemporaryDirectory() as place:
            os.environ["CACHE_DIR"] = f"{place}/cache"
            write_images(Path(place) / "data", count)
            time.sleep(2.1)  # younger files are not remembered
            for name, data in layouts(Path(place) / "data").items():
                seconds = []
                for _ in range(3):
                    began = time.perf_counter()
                    list_record(OmegaConf.create(data)).fingerprint  # noqa: B018
                    seconds.append(time.perf_counter() - began)
                print(f"{count} images, {name}: first {seconds[0]:.2f} s, "
                      f"then {min(seconds[1:]):.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
