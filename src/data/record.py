"""The images of a data set by name, label and content: what a run was made of.

`data.csv` in a run folder has one row an image. Its fingerprint names the run: other images, masks
or labels are another run, a folder that was only moved is the same.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import hydra
from omegaconf import DictConfig, ListConfig, OmegaConf

from src.contents import content_hashes
from src.data.images import mask_files
from src.data.listing import no_images, walk
from src.data.samples import Found, Sample, normals
from src.errors import ConfigError, did_you_mean
from src.files import ESCAPE

FILE_NAME = "data.csv"
#: In the order in which models number their images.
FITTED = ("train", "calibration", "validation")


class Entry(NamedTuple):
    """One image of a data set."""

    path: str  # below the root of the data set, absolute when it lies elsewhere; as in scores.csv
    split: str  # as the data set files it
    used: str  # what the run used it for: one of FITTED, test, or nothing
    label: int
    defect: str
    image: str  # hash of the file's bytes
    mask: str  # the same of the files of its mask, empty without one
    channels: str  # the same of further files that complete the image

    @property
    def content(self) -> str:
        """Equal for images that show the same, pixel for pixel."""
        return f"{self.image} {self.channels}".rstrip()


@dataclass(frozen=True)
class DataRecord:
    """All images of a data set, in the order in which they are listed."""

    entries: Sequence[Entry]

    @classmethod
    def of(cls, samples: Sequence[Sample], root: Path) -> Self:
        """Hash the files of `samples`; `used` is filled in by `with_use`."""
        files: list[list[Sequence[Path]]] = []
        for one in samples:
            masks = mask_files(one.mask_path) if one.mask_path else []
            masks += [one.saturation] if one.saturation else []  # what must be found of them
            files.append([[one.image_path], masks, one.channel_paths])
        hashes = content_hashes(path for parts in files for part in parts for path in part)
        return cls([
            Entry(
                path_below(one.image_path, root), one.split, "", one.label, one.defect,
                *(" ".join([hashes[str(path)] for path in part]) for part in parts),
            )
            for one, parts in zip(samples, files, strict=True)
        ])  # fmt: skip

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Self:
        """From the rows of data.csv; KeyError or ValueError when it is another file."""
        facts = ({name: row[name] for name in Entry._fields} for row in rows)
        return cls([Entry(**fact | {"label": int(fact["label"])}) for fact in facts])

    def rows(self) -> list[dict[str, Any]]:
        """Rows for data.csv."""
        return [entry._asdict() for entry in self.entries]

    def with_use(self, used: Sequence[str]) -> "DataRecord":
        """The same images, each with what it was used for."""
        pairs = zip(self.entries, used, strict=True)
        return DataRecord([entry._replace(used=use) for entry, use in pairs])

    @property
    def fingerprint(self) -> str:
        """sha256 over order, names, labels and contents, wherever the folders lie."""
        outside: dict[tuple[str, int], list[str]] = {}  # folders elsewhere, by split and label
        for entry in self.entries:
            if entry.path.startswith(os.sep):
                folder = os.path.dirname(entry.path)  # noqa: PTH120
                outside.setdefault((entry.split, entry.label), []).append(folder)
        homes = {key: os.path.commonpath(folders) for key, folders in outside.items()}
        total = hashlib.sha256()
        for entry in self.entries:
            name = entry.path
            if name.startswith(os.sep):
                name = os.path.relpath(name, homes[entry.split, entry.label])
            facts = (name, entry.split, str(entry.label), entry.defect, *entry[5:])
            total.update("\0".join(facts).encode() + b"\0\0")
        return total.hexdigest()

    @property
    def fitted(self) -> list[Entry]:
        """Images that were trained, calibrated or validated on, as models number them."""
        return [entry for use in FITTED for entry in self.entries if entry.used == use]

    def difference(self, now: "DataRecord") -> str:
        """In words, what changed from this record to `now`; empty when nothing did."""
        old, new = ({entry.path: entry for entry in one.entries} for one in (self, now))
        both = [(old[path], new[path]) for path in old.keys() & new.keys()]
        counts = {
            "image{s} added": len(new.keys() - old.keys()),
            "image{s} removed": len(old.keys() - new.keys()),
            "image{s} changed": sum(a.content != b.content for a, b in both),
            "mask{s} changed": sum(a.mask != b.mask for a, b in both),
            "image{s} filed otherwise": sum(
                (a.split, a.label, a.defect) != (b.split, b.label, b.defect) for a, b in both
            ),
        }
        told = ((n, what.format(s="s" * (n != 1))) for what, n in counts.items() if n)
        return ", ".join(f"{n} {what}" for n, what in told)


def path_below(path: Path | str, root: Path) -> str:
    """The path below `root`, whole when it lies elsewhere, as data.csv and scores.csv have it."""
    return str(path).removeprefix(f"{root}{os.sep}").encode(errors=ESCAPE).decode()


def partial_of(node: DictConfig) -> Callable[..., Any]:
    """The function `_target_` of a node with its other values given; a name may hold `${`.

    Hydra's own `instantiate` reads texts twice, so that it would look for a key of that name.
    """
    values = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    target = hydra.utils.get_method(values.pop("_target_"))
    values.pop("_partial_", None)
    for name, value in values.items():
        if isinstance(value, dict) and "_target_" in value:
            values[name] = hydra.utils.instantiate(value)
    return functools.partial(target, **values)


def place_of(data: DictConfig) -> tuple[Path, str]:
    """Root folder of the `data` node and the name of what it holds: `bottle`, `bottle+screw`."""
    root = Path(str(data.root)).expanduser().absolute()
    return root, "+".join(categories_of(data))


def categories_of(data: DictConfig) -> list[str]:
    """The categories of the `data` node: those named, or the name of its root folder."""
    named = data.get("category") or Path(str(data.root)).expanduser().absolute().name
    return list(dict.fromkeys(map(str, named if isinstance(named, ListConfig) else [named])))


def prepare_data(data: DictConfig) -> None:
    """Download or draw what is missing, for data sets that can."""
    if data.get("prepare") is not None:
        for category in categories_of(data):
            partial_of(data.prepare)(place_of(data)[0], category)


def with_data_at(config: DictConfig, root: str | None) -> DictConfig:
    """The config of a run with its images in the folder `root`; None: where they were."""
    if root is None:
        return config
    place = str(Path(root).expanduser().absolute())
    return cast(DictConfig, OmegaConf.merge(config, {"data": {"root": place}}))


def list_samples(data: DictConfig) -> Found:
    """The samples of the `data` node as they lie on disk, or a DataError; nothing is downloaded.

    Of several categories one after the other, each defect by the name `category/defect`.
    """
    root, names, found = place_of(data)[0], categories_of(data), Found([])
    for name in names:
        part: Found = partial_of(data.index)(root, name)
        found.findings += part.findings
        for sample in part:
            defect = f"{name}/{sample.defect}" if len(names) > 1 else sample.defect
            found.append(replace(sample, category=name, defect=defect))
    if folder := data.get("calibration_dir"):  # good parts that set the threshold and nothing else
        there = walk(root / folder)
        if not there.images:
            raise no_images(root / folder)
        for one in normals(there.images, "calibration"):
            folders = path_below(one.image_path, root).split("/")
            found.append(replace(one, category=next((n for n in names if n in folders), "")))
    return excluding(found, data.get("exclude") or [], root)


def excluding(found: Found, names: Sequence[str], root: Path) -> Found:
    """The images but those named by their path below `root` or its end; ConfigError: not one."""
    paths = [path_below(sample.image_path, root) for sample in found]
    left_out: set[str] = set()
    for name in names:
        hits = [path for path in paths if path == name or path.endswith(f"/{name.lstrip('/')}")]
        if len(hits) != 1:
            ends = [path.rpartition("/")[2] for path in paths] if "/" not in name else paths
            several = f"it is the end of {', '.join(hits[:3])}; give more of the path"
            raise ConfigError(
                f"data.exclude must name images below {root}.",
                found=f"{name!r}, which is the name of {len(hits)} images",
                do=several if hits else did_you_mean(name, set(ends)),
            )
        left_out.update(hits)
    kept = [sample for sample, path in zip(found, paths, strict=True) if path not in left_out]
    return Found(kept, found.findings)


def list_record(data: DictConfig) -> DataRecord:
    """`list_samples` with the contents of their files."""
    return DataRecord.of(list_samples(data), place_of(data)[0])
