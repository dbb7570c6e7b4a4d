"""The data doctor as one call: examine the samples of a configuration, or those of a run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from src.data.doctor import examine
from src.data.record import list_samples, place_of
from src.data.transforms import ImageTransform
from src.data.viewing import settle_depth, view_of
from src.errors import ConfigError
from src.evaluation.operating_points import suspicion
from src.partials import partial_of
from src.reporting.doctor_sheet import draw_pictures, draw_report, print_report, write_json
from src.saved_run import SavedRun

_TOLD = 10  # pictures on console and sheet


def check_data_set(cfg: DictConfig) -> int:
    """Examine `cfg.data`; print, write findings.json and check.png to `cfg.out`.

    Returns:
        0 nothing worse than a note, 1 warnings, 2 errors.

    Raises:
        DataError: the data set is not there at all.
    """
    if cfg.run:
        return rank_by_suspicion(SavedRun(Path(cfg.run).expanduser()))
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
    print_report(report, console, f"{data.name}/{category} in {root}", data.get("exclude") or ())
    out = Path(cfg.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    write_json(report, out / "findings.json")
    draw_report(report, out / "check.png")
    console.print(f"Every file name: {out / 'findings.json'}", soft_wrap=True, highlight=False)
    console.print(f"Picture: {out / 'check.png'}", soft_wrap=True, highlight=False)
    return report.exit_code


def rank_by_suspicion(run: SavedRun) -> int:
    """Rank the pictures that a run was calibrated with, the most conspicuous first.

    Prints the first ten; writes suspicion.csv of all and suspicion.png of the first to the run.

    Raises:
        ConfigError: the run kept no such scores.
    """
    normal = run.calibration()
    if normal is None:
        raise ConfigError(
            "The run has no scores of good pictures that its model had not seen.",
            found=f"no calibration.csv in {run.directory}",
            do="give a PatchCore run, or one with calibration.fraction=0.1",
        )
    ranked, console = suspicion(normal), Console(markup=False, highlight=False)
    root, _ = place_of(run.config().data)
    table = Table("picture", "score", "p", title=f"most suspicious of {len(ranked)}, {normal.way}")
    for path, score, p in ranked[:_TOLD]:
        table.add_row(path, f"{score:.4g}", f"{p:.3f}")
    console.print(table)
    console.print("p: share of these pictures with at least this score. Bad shots can be left out "
                  f"with data.exclude=[{ranked[0][0]},...]", soft_wrap=True)  # fmt: skip
    run.write_rows("suspicion.csv", [{"path": a, "score": b, "p": c} for a, b, c in ranked])
    sheet = run.directory / "suspicion.png"
    chosen = [(root / path, f"{score:.4g}, p {p:.3f}") for path, score, p in ranked[:_TOLD]]
    draw_pictures(chosen, sheet)
    console.print(f"All: {sheet.with_suffix('.csv')}, picture: {sheet}", soft_wrap=True)
    return 0
