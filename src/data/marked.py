"""Data sets whose images are defective where their masks mark anything, whatever their folder.

Good and defective images lie side by side, each with its mask beside it: KolektorSDD
(`kos01/Part0.jpg`, `Part0_label.bmp`), KolektorSDD2 (`train/10000.png`, `10000_GT.png`), magnetic
tiles (`MT_Crack/Imgs/exp1.jpg` and `.png`), DAGM (`Class1/Train/0576.PNG`, `Label/0576_label.PNG`).
"""

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from src.data.images import read_mask
from src.data.listing import category_folder, find_root, no_images, walk
from src.data.measured import each
from src.data.samples import DEFECTIVE, NORMAL, Found, Sample, about
from src.data.splits import hold_out


def index_marked(
    root: Path,
    category: str,
    *,
    data_set: str,
    holds: str | None,
    train_dir: str,
    test_dir: str | None,
    images: str,
    mask: str,
    kinds: bool,
    test_fraction: float,
    seed: int,
) -> Found:
    """Samples in natural order: training, then the test; conf/base/marked.yaml.

    Defective images of the training folder are left out. Without a folder of its own the test gets
    all defective images and a seeded share of the good ones. DataError: no such layout or category,
    no good images, or a mask that cannot be read.
    """
    root = root.absolute()
    base = (
        find_root(root, data_set, holds) if holds
        else category_folder(root, category, train_dir, data_set)
    )  # fmt: skip
    learnt = _read(base / train_dir, images, mask, "train", kinds=kinds)
    good, bad = ([s for s in learnt if s.label == label] for label in (NORMAL, DEFECTIVE))
    if not good:
        raise no_images(base / train_dir)
    if test_dir is None:
        good, tested = hold_out(good, test_fraction, seed, "test", least=1)
        tested += [replace(sample, split="test") for sample in bad]
        return Found([*good, *tested], learnt.findings)
    rest = _read(base / test_dir, images, mask, "test", kinds=kinds)
    left_out = about(
        [sample.image_path for sample in bad], "note",
        "Defective images in the training folder; they are left out.",
        remedy="nothing: methods learn from good images only",
    )  # fmt: skip
    return Found([*good, *rest], [*learnt.findings, *rest.findings, *left_out])


def _read(folder: Path, images: str, mask: str, split: str, *, kinds: bool) -> Found:
    """The images of a folder in natural order, with their labels."""
    pictures = walk(folder).images
    named = [path for path in pictures if fnmatch(path.name.lower(), images.lower())]
    masks = {path: path.parent / mask.format(stem=path.stem) for path in named}
    there = {path: place for path, place in masks.items() if place.is_file()}
    marked, broken = each([*there], lambda path: bool(read_mask(there[path]).any()))
    for _, error in broken:
        raise error
    bad = {path for path, any_ in zip(there, marked, strict=True) if any_}
    samples = [
        Sample(path, there[path], DEFECTIVE,
               path.relative_to(folder).parts[0] if kinds else "defect", split) if path in bad
        else Sample(path, None, NORMAL, "good", split)
        for path in named
    ]  # fmt: skip
    unused = about(
        sorted({*pictures} - {*masks} - {*masks.values()}), "warning", "Images that are not used.",
        remedy=f"images are called {images} and their masks {mask}; correct the names",
    )  # fmt: skip
    return Found(samples, unused)
