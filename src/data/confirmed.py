"""Good parts that somebody confirmed later, beside the data set that a run was made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from src.contents import content_hashes
from src.data.gathering import Folders, gather
from src.data.layout import no_images, normals
from src.data.samples import DEFECTIVE, Found, about, some
from src.errors import DataError


def index_with_confirmed(
    root: Path, category: str, *, base: Callable[[Path, str], Found], folders: Sequence[str]
) -> Found:
    """The samples of `base` and those in `folders`, once each by content, as training images.

    Raises:
        DataError: a folder without images, or with one that the data set calls defective.
    """
    samples, findings = base(root, category), []
    known = content_hashes(sample.image_path for sample in samples)
    seen = {known[str(one.image_path)] for one in samples if one.split == "train"}
    bad = {known[str(one.image_path)] for one in samples if one.label == DEFECTIVE}
    for folder in map(Path, folders):
        gathered = gather(Folders(folder))
        if gathered.empty:
            raise no_images(folder)
        findings += gathered.findings
        contents = content_hashes(gathered.train)
        hashed = [(path, contents[str(path)]) for path in gathered.train]
        if wrong := [path for path, content in hashed if content in bad]:
            raise DataError(
                "Pictures confirmed as good are defective ones of the data set.",
                found=some(wrong),
                do="take them out of one of the two",
            )
        fresh: list[Path] = []
        again: list[Path] = []
        for path, content in hashed:
            (again if content in seen else fresh).append(path)
            seen.add(content)
        findings += about(
            again, "note", what="Confirmed pictures that are known already; they count once.",
            remedy="nothing: copies would make the model look better than it is",
        )  # fmt: skip
        samples += normals(fresh, "train")
    return Found(samples, [*samples.findings, *findings])
