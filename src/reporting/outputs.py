"""What a run leaves behind for people: scores.csv, figures, report.html, a table on the console."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from src.data.datamodule import AnomalyDataModule
from src.data.images import read_sample
from src.data.samples import NORMAL, Sample
from src.detector import Detection, Detector
from src.evaluation.evaluator import Evaluator
from src.evaluation.view import pixel_convention
from src.explaining import explain
from src.files import fitting, shown
from src.models.base import AnomalyModule, LineChart
from src.reporting import curves as draw
from src.reporting.colour_scale import ColourScale
from src.reporting.extras import write_extras
from src.reporting.figures import contact_sheet, overlay, save_png, triptych
from src.reporting.line_chart import draw_lines
from src.reporting.records import (
    Curve,
    DefectRecall,
    ImageResult,
    Picture,
    ProtocolFacts,
    ReportData,
    ThresholdFacts,
    choose_pictures,
)
from src.reporting.report import write_report
from src.reporting.run_table import print_run_table
from src.reporting.wording import checkpoint_choice, method_title
from src.result import Threshold
from src.saved_run import SavedRun, ScoreRow

_SHEET_IMAGES = 24  # pictures on the contact sheet and as triptychs


def write_outputs(
    cfg: DictConfig,
    run: SavedRun,
    model: AnomalyModule,
    data: AnomalyDataModule,
    evaluator: Evaluator,
    threshold: Threshold,
    metrics: Mapping[str, float],
    sources: Sequence[Sample],
) -> dict[str, Path]:
    """Write scores.csv, figures and the report; returns the pictures to log, by name.

    `sources`: the samples the model was fitted on, for pictures of patch matches.
    """
    rows = score_rows(data, evaluator)
    run.write_scores(rows)
    _write_pixel_statistics(run, evaluator, rows)
    detector = Detector(model, data.transform, threshold, cfg, run.directory, _device(model))
    names = _short_names([Path(row.path) for row in rows])
    results = [_result(row, name) for row, name in zip(rows, names, strict=True)]
    chosen = choose_pictures(results, threshold.image, cfg.report.max_images)
    samples = [data.samples[row["index"]] for row in evaluator.per_image_rows()]
    scale, extra_scales = _scales(detector, [samples[i] for i in chosen], threshold)
    run.write_json("figures/scale.json", asdict(scale))
    pictured = _with_pictures(results, samples, chosen, detector, sources)
    pictures = write_figures(run, pictured, chosen[:_SHEET_IMAGES], scale, evaluator, threshold)
    pictures |= _diagnostics(run, model)
    pictures |= write_extras(
        detector, data.test_samples, run.directory / "extras", cfg.report.get("extras", ())
    )
    if cfg.report.enabled:
        report = _report_data(
            cfg, run, data, evaluator, threshold, metrics, pictured, scale, extra_scales
        )
        write_report(
            run.directory / "report.html", report,
            max_images=cfg.report.max_images, max_side=cfg.report.max_side,
        )  # fmt: skip
    return pictures


def score_rows(data: AnomalyDataModule, evaluator: Evaluator) -> list[ScoreRow]:
    """One row per test image, in the order of the data set."""
    rows = []
    for found in evaluator.per_image_rows():
        sample = data.samples[found["index"]]
        rows.append(
            ScoreRow(
                path=_below(sample.image_path, data.root),
                label=sample.label,
                defect=sample.defect,
                score=found["score"],
                decision=found["decision"],
                map_max=found["map_max"],
                split=sample.split,
                iou=math.nan if found["iou"] is None else found["iou"],
                image=data.entry_of(sample).content,
                mask=data.entry_of(sample).mask,
            )
        )
    return rows


def _write_pixel_statistics(run: SavedRun, evaluator: Evaluator, rows: Sequence[ScoreRow]) -> None:
    """Keep what `src.compare` resamples the pixel metrics from; nothing without masks."""
    if evaluator.has_masks:
        indices = [row["index"] for row in evaluator.per_image_rows()]
        paths = dict(zip(indices, (row.path for row in rows), strict=True))
        histograms = evaluator.pixel_histograms()
        named = [paths[index] for index in histograms.image.tolist()]
        run.write_pixel_statistics(histograms, named)


def write_figures(
    run: SavedRun,
    results: list[ImageResult],
    chosen: list[int],
    scale: ColourScale,
    evaluator: Evaluator,
    threshold: Threshold,
) -> dict[str, Path]:
    """Curves, a contact sheet and triptychs of the images most worth seeing, as PNG."""
    folder = run.directory / "figures"
    scores = np.array([row.score for row in results])
    labels = np.array([row.label for row in results])
    defects = [row.defect for row in results]
    figures = {
        "histogram": draw.score_histogram(scores, labels, threshold.image),
        "scores_by_defect": draw.score_strip(scores, defects, labels, threshold.image),
    } | {curve.kind: draw.ranking_curve(curve) for curve in _curves(evaluator)}
    for name, figure in figures.items():
        draw.save_figure(figure, folder / f"{name}.png")
    names, tiles, captions = list(figures), [], []
    for index in chosen:
        picture = results[index].load_picture()
        if picture is None:
            continue
        caption = f"{results[index].outcome}: {results[index].path} ({results[index].score:.4g})"
        name = results[index].path.replace("/", "_").rsplit(".", 1)[0]
        save_png(triptych(picture, scale, caption), fitting(folder / "images" / f"{name}.png"))
        tiles.append(overlay(picture, scale))
        captions.append(caption)
    if tiles:
        save_png(contact_sheet(tiles, captions), folder / "contact_sheet.png")
        names.append("contact_sheet")
    return {name: folder / f"{name}.png" for name in names}


def print_result(run: SavedRun, *, repeated: bool = False) -> None:
    """Metrics and paths of a finished run on the console."""
    if repeated:
        print(f"Already finished (force=true repeats it): {run.directory}")
    print_run_table(run)


# --- pieces of the report ----------------------------------------------------------------------


def _report_data(
    cfg: DictConfig,
    run: SavedRun,
    data: AnomalyDataModule,
    evaluator: Evaluator,
    threshold: Threshold,
    metrics: Mapping[str, float],
    results: list[ImageResult],
    scale: ColourScale,
    extra_scales: Mapping[str, ColourScale],
) -> ReportData:
    method = method_title(cfg.model.name)
    manifest = run.read_json("manifest.json")
    words = manifest.get("command", [])[1:]
    return ReportData(
        title=f"{method} on {data.name} {data.category}",
        metrics=metrics,
        threshold=ThresholdFacts(**threshold.to_json()),
        protocol=_protocol(cfg, data, threshold, metrics),
        images=results,
        scale=scale,
        extra_scales=extra_scales,
        intervals=_intervals(metrics),
        recalls=[DefectRecall(*row) for row in evaluator.defect_recalls(data.samples)],
        curves=_curves(evaluator),
        subtitle=f"seed {cfg.seed}, backbone {cfg.backbone.name or 'none'}",
        config_yaml=OmegaConf.to_yaml(cfg, resolve=True),
        manifest=manifest,
        command=shlex.join(["python", "-m", "src.run", *words]),
        notes=tuple(evaluator.notes()),
    )


def _protocol(
    cfg: DictConfig, data: AnomalyDataModule, threshold: Threshold, metrics: Mapping[str, float]
) -> ProtocolFacts:
    held_out = f"{len(data.calibration_samples)} held-out normal images"
    if threshold.oracle:
        calibration = "test labels (oracle)"
    elif threshold.rule == "nfa":
        shifted = data.calibration_samples and cfg.model.nfa.calibrate
        calibration = f"{held_out} shift log NFA" if shifted else "none"
    elif data.calibration_samples:
        calibration = held_out
    else:
        calibration = "leave-one-image-out on the training images"
    return ProtocolFacts(
        name=cfg.protocol,
        train_images=len(data.train_samples),
        calibration=calibration,
        selection=checkpoint_choice(cfg.protocol, metrics),
        pixels=pixel_convention(cfg) if "test/pixel_auroc" in metrics else "",
    )


def _intervals(metrics: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    ends = {key.removesuffix("_ci_low") for key in metrics if key.endswith("_ci_low")}
    return {key: (metrics[f"{key}_ci_low"], metrics[f"{key}_ci_high"]) for key in ends}


def _curves(evaluator: Evaluator) -> list[Curve]:
    return [Curve(one.kind, one.x, one.y, one.area, one.limit) for one in evaluator.curves()]


# --- pictures ----------------------------------------------------------------------------------


def _result(row: ScoreRow, name: str) -> ImageResult:
    return ImageResult(name, row.label, row.defect, row.score, row.decision)


def _with_pictures(
    results: list[ImageResult],
    samples: list[Sample],
    chosen: list[int],
    detector: Detector,
    sources: Sequence[Sample],
) -> list[ImageResult]:
    """The results, the chosen ones with a function that draws them when they are needed."""
    pictured = list(results)
    for index in chosen:
        row = results[index]
        pictured[index] = ImageResult(
            row.path, row.label, row.defect, row.score, row.decision,
            _picture(samples[index], detector, sources),
        )  # fmt: skip
    return pictured


def _picture(
    sample: Sample, detector: Detector, sources: Sequence[Sample]
) -> Callable[[], Picture]:
    def make() -> Picture:
        image = read_sample(sample)
        found = detector.detect([image])[0]
        return Picture(
            display=detector.transform.display(image),
            anomaly_map=found.anomaly_map,
            mask=_truth(sample, detector, image),
            segmentation=found.mask,
            extra=found.extra,
            match=explain(detector, image, sources) if found.alarm else None,
        )

    return make


def _truth(sample: Sample, detector: Detector, image: Image.Image) -> np.ndarray | None:
    if sample.mask_path is not None:
        return detector.transform.mask(sample.mask_path)
    return np.zeros(detector.transform.size, dtype=bool) if sample.label == NORMAL else None


def _scales(
    detector: Detector, samples: list[Sample], threshold: Threshold
) -> tuple[ColourScale, dict[str, ColourScale]]:
    """One scale for the run, from its pictures, and one for each further map of the method."""
    found: list[Detection] = []
    for sample in samples[:: max(1, len(samples) // 32)]:
        found += detector.detect([read_sample(sample)])
    maps = [one.anomaly_map for one in found]
    masks = [one.mask for one in found]
    own = threshold.own_mask  # the method's own regions decide, not the map that is coloured
    scale = _anchored(maps, masks) if own else ColourScale.fit(maps, threshold.pixel)
    names = found[0].extra if found else {}
    return scale, {name: _anchored([one.extra[name] for one in found], masks) for name in names}


def _anchored(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> ColourScale:
    """A scale whose threshold is where the masks begin: what is outside lies below it."""
    outside = [each[~mask] for each, mask in zip(maps, masks, strict=True)]
    return ColourScale.fit(maps, float(np.quantile(np.concatenate(outside), 0.999)))


def _diagnostics(run: SavedRun, model: AnomalyModule) -> dict[str, Path]:
    """Figures a method draws of itself (coreset radius, latents, loss weights)."""
    paths = {}
    for name, chart in model.diagnostics().items():
        figure = draw_lines(chart) if isinstance(chart, LineChart) else chart
        paths[name] = run.directory / "figures" / f"{name}.png"
        draw.save_figure(figure, paths[name])
    return paths


def _device(model: AnomalyModule) -> torch.device:
    return next((value.device for value in model.state_dict().values()), torch.device("cpu"))


def _below(path: Path, root: Path) -> str:
    return shown(path.relative_to(root) if path.is_relative_to(root) else path)


def _short_names(paths: list[Path]) -> list[str]:
    """Paths without the folders that all of them share: broken_large/003.png."""
    shared = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    if all(path.parent == shared for path in paths):
        shared = shared.parent  # one folder only: keep its name
    return [path.relative_to(shared).as_posix() for path in paths]
