"""The data doctor as one call: list the samples of a configuration, examine, report."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from src.data.aspect import view_of
from src.data.depth import settle_depth
from src.data.doctor import examine
from src.data.doctor_sheet import draw_report, print_report, write_json
from src.data.record import list_samples, place_of
from src.data.transforms import ImageTransform
from src.partials import partial_of


def check_data_set(cfg: DictConfig) -> int:
    """Examine `cfg.data`; print, write findings.json and check.png to `cfg.out`.

    Returns:
        0 nothing worse than a note, 1 warnings, 2 errors.

    Raises:
        DataError: the data set is not there at all.
    """
    data, (root, category) = cfg.data, place_of(cfg.data)
    if data.get("prepare") is not None:
        partial_of(data.prepare)(root, category)
    found = list_samples(data)
    samples, _ = settle_depth(found, data.get("bit_depth"))
    train = [sample.image_path for sample in samples if sample.split == "train"]
    view = view_of(data.view, train) if data.get("view") else None
    transform = ImageTransform.from_config(cfg.transform) if cfg.get("transform") else view
    published = (data.get("counts") or {}).get(category)
    named = bool(data.get("mask_dir", True))  # data sets without the key know where masks are
    report = examine(samples, transform=transform, published=published, masks_named=named)
    console = Console()
    print_report(report, console, f"{data.name}/{category} in {root}")
    out = Path(cfg.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    write_json(report, out / "findings.json")
    draw_report(report, out / "check.png")
    console.print(f"Every file name: {out / 'findings.json'}", soft_wrap=True, highlight=False)
    console.print(f"Picture: {out / 'check.png'}", soft_wrap=True, highlight=False)
    return report.exit_code
