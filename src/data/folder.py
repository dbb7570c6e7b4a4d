"""Your own images: a folder of good parts, and optionally defective ones with or without masks.

Without a folder of normal test images a seeded share of the normals is held out for the test;
without defective images the test shows false alarms, not detection.
"""

from collections.abc import Sequence
from pathlib import Path

from src.data.gathering import gather
from src.data.listing import missing, no_images
from src.data.samples import NORMAL, Found
from src.data.splits import hold_out


def index_folder(
    root: Path,
    category: str,
    *,
    normal_dir: str,
    abnormal_dir: str | Sequence[str] | None,
    mask_dir: str | None,
    normal_test_dir: str | None,
    test_fraction: float,
    seed: int,
) -> Found:
    """Samples below `root`, which does not depend on the category.

    conf/data/folder.yaml explains the folders, which may also be absolute. Among those of defect
    types one that is called good, ok or normal holds good parts for the test.

    Raises:
        DataError: a folder that was named is missing or has no images.
        ConfigError: a folder with two meanings.
    """
    root = root.absolute()
    if not root.is_dir():
        raise missing(root, "Your image folder", str(root / normal_dir))
    bad_dirs = [abnormal_dir] if isinstance(abnormal_dir, str) else list(abnormal_dir or [])
    found, empty = gather(
        root / normal_dir,
        root / normal_test_dir if normal_test_dir else None,
        [root / name for name in bad_dirs],
        root / mask_dir if mask_dir else None,
    )
    if empty:
        raise no_images(empty[0])
    if any(sample.split == "test" and sample.label == NORMAL for sample in found):
        return found
    good = [sample for sample in found if sample.label == NORMAL]
    train, test = hold_out(good, test_fraction, seed, "test", least=1)
    return Found([*train, *test, *(s for s in found if s.label != NORMAL)], found.findings)
