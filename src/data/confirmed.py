"""Good parts that somebody confirmed later, beside the data set that a run was made of."""

from collections.abc import Callable, Sequence
from pathlib import Path

from src.contents import content_hashes
from src.data.gathering import gather
from src.data.listing import no_images
from src.data.samples import DEFECTIVE, Found, Sample, about, some
from src.errors import DataError


def index_with_confirmed(
    root: Path, category: str, *, base: Callable[[Path, str], Found], folders: Sequence[str]
) -> Found:
    """The samples of `base` and those in `folders`, once each by content, as training images.

    DataError: a folder without images, or with one that the data set calls defective.
    """
    samples, findings = base(root, category), []
    known = content_hashes(sample.image_path for sample in samples)
    seen = {known[str(one.image_path)] for one in samples if one.split == "train"}
    bad = {known[str(one.image_path)] for one in samples if one.label == DEFECTIVE}
    for folder in map(Path, folders):
        found, empty = gather(folder)
        if empty:
            raise no_images(folder)
        findings += found.findings
        contents = content_hashes(sample.image_path for sample in found)
        fresh: dict[str, Sample] = {}
        again: list[Path] = []
        for sample in found:
            content = contents[str(sample.image_path)]
            if content in seen or fresh.setdefault(content, sample) is not sample:
                again.append(sample.image_path)
        seen |= fresh.keys()
        if wrong := [one.image_path for one in found if contents[str(one.image_path)] in bad]:
            what = "Pictures confirmed as good are defective ones of the data set."
            raise DataError(what, found=some(wrong), do="take them out of one of the two")
        findings += about(
            again, "note", "Confirmed pictures that are known already; they count once.",
            remedy="nothing: copies would make the model look better than it is",
        )  # fmt: skip
        samples += fresh.values()
    return Found(samples, [*samples.findings, *findings])
