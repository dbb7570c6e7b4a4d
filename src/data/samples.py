"""One image on disk and what is known of it; what a lister notices about a whole data set."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from src.files import shown

NORMAL, DEFECTIVE, UNKNOWN = 0, 1, -1
SEVERITIES = ("note", "warning", "error")  # their positions are the doctor's exit codes
_TYPES_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Sample:
    """An image, its mask and its label; paths are absolute."""

    image_path: Path
    mask_path: Path | None  # a file, or a folder with one for each region (images.mask_files)
    label: int  # NORMAL, DEFECTIVE or UNKNOWN
    defect: str  # folder name of the defect type, "good" for normal images
    split: str  # "train" | "calibration" | "validation" | "test"
    channel_paths: tuple[Path, ...] = ()  # further files that complete the image (height maps)
    bit_depth: int | None = None  # bits that a deep grey file fills; None: 16 (see measured.py)
    saturation: Path | None = None  # when a part of each region is enough (see images.py)
    category: str = ""  # the product; of several together, `defect` begins with it

    def __post_init__(self) -> None:
        object.__setattr__(self, "defect", shown(self.defect))  # it is printed, not opened


def normals(paths: Iterable[Path], split: str) -> list[Sample]:
    """Normal samples of a split."""
    return [Sample(path, None, NORMAL, "good", split) for path in paths]


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed, in the three parts of our errors."""

    severity: str  # one of SEVERITIES
    what: str
    _: KW_ONLY
    found: str
    remedy: str
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} Found: {self.found}. Do: {self.remedy}."


def about(
    files: Iterable[Path], severity: str, what: str, *, remedy: str, found: str = ""
) -> list[Finding]:
    """The finding that these files have something in common; nothing when there are none."""
    files = tuple(files)
    one = Finding(severity, what, found=found or some(files), remedy=remedy, files=files)
    return [one] if files else []


class Found(list[Sample]):
    """The samples of a data set, and what the lister noticed beside them."""

    def __init__(self, samples: Iterable[Sample], findings: Sequence[Finding] = ()) -> None:
        super().__init__(samples)
        self.findings = list(findings)


def some(files: Sequence[Path]) -> str:
    """`3 files: a/b.png, ...` with the folder that names class or split."""
    names = ", ".join(f"{path.parent.name}/{path.name}" for path in files[:3])
    return f"{len(files)} files: {names}{', ...' if len(files) > 3 else ''}"


def summary(samples: Sequence[Sample], excluded: Sequence[str] = ()) -> str:
    """The line "train n, calibration n, test good n, defective n (types), masks n, excluded n"."""
    bad = [s for s in samples if s.label == DEFECTIVE]
    types = [f"{name} {count}" for name, count in Counter(s.defect for s in bad).items()]
    if len(types) > _TYPES_SHOWN:
        types[_TYPES_SHOWN:] = [f"{len(types) - _TYPES_SHOWN} more types"]
    split = Counter(s.split for s in samples)
    unknown = sum(s.label == UNKNOWN for s in samples)
    deep = samples[0].bit_depth if samples else None
    parts = {
        f"train {len(samples) - split['test'] - split['calibration']}": True,
        f"calibration {split['calibration']}": split["calibration"],
        f"test good {split['test'] - len(bad) - unknown}": True,
        f"defective {len(bad)}" + (f" ({', '.join(types)})" if types else ""): True,
        f"masks {sum(s.mask_path is not None for s in bad)}": True,
        f"without a label {unknown}": unknown,
        f"deep grey of {deep} bits (white is {2 ** (deep or 0) - 1}; data.bit_depth)": deep,
        f"excluded {len(excluded)} ({', '.join(excluded[:_TYPES_SHOWN])})": excluded,
    }
    return ", ".join(part for part, there in parts.items() if there)
