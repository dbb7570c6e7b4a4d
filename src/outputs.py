"""What a run leaves behind for people: scores.csv, figures, report.html, a table on the console."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from src.data.datamodule import AnomalyDataModule
from src.data.images import read_sample
from src.data.samples import NORMAL, Sample
from src.detector import Detection, Detector
from src.evaluation.evaluator import Evaluator
from src.evaluation.operating_points import POINTS, Deciding, deciding, operating_points
from src.evaluation.view import pixel_convention
from src.explaining import explain
from src.extras import write_extras
from src.files import fitting, shown
from src.models.base import AnomalyModule
from src.reporting.chart_files import draw_lines, ranking_curve, save_figure, score_figure
from src.reporting.charts import score_chart
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import contact_sheet, overlay, save_png, triptych
from src.reporting.records import (
    ImageResult,
    Picture,
    ProtocolFacts,
    ReportData,
    choose_pictures,
)
from src.reporting.report import write_report
from src.reporting.wording import checkpoint_choice, method_title
from src.result import Calibration, LineChart, Threshold
from src.saved_run import SavedRun, ScoreRow

_SHEET_IMAGES = 24  # pictures on the contact sheet and as triptychs
_DECIDERS = 6  # pictures that set the threshold


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
    rows = write_tables(run, data, evaluator)
    samples = [data.samples[row["index"]] for row in evaluator.per_image_rows()]
    device = next((value.device for value in model.state_dict().values()), torch.device("cpu"))
    detector = Detector(model, data.transform, threshold, cfg, run.directory, device)
    images = [
        ImageResult(name, row.label, row.defect, row.score, row.decision)
        for row, name in zip(rows, _short_names([Path(row.path) for row in rows]), strict=True)
    ]
    chosen = choose_pictures(images, threshold.image, cfg.report.max_images)
    scale = _scale(detector, [samples[i] for i in chosen])
    run.write_json("figures/scale.json", asdict(scale))
    for i in chosen:  # drawn when they are needed, one at a time
        images[i] = replace(images[i], picture=_picture(samples[i], detector, sources))
    manifest, normal = run.read_json("manifest.json"), run.calibration()
    decides, points = deciding(normal, threshold), []
    if normal and not threshold.own_mask:
        points = operating_points(normal, [r.score for r in rows], [r.label for r in rows])
        run.write_rows(POINTS, [point._asdict() for point in points])
    report = ReportData(
        title=f"{method_title(cfg.model.name)} on {data.name} {data.category}",
        subtitle=f"seed {cfg.seed}, backbone {cfg.backbone.name or 'none'}",
        metrics=metrics,
        threshold=threshold,
        protocol=_protocol(cfg, data, threshold, metrics, normal.way if normal else None),
        images=images,
        scale=scale,
        recalls=evaluator.defect_recalls(data.samples),
        curves=evaluator.curves(),
        config_yaml=OmegaConf.to_yaml(cfg, resolve=True),
        manifest=manifest,
        command=shlex.join(["python", "-m", "src.run", *manifest.get("command", [])[1:]]),
        notes=evaluator.notes(),
        normal_scores=sorted(normal.image.tolist()) if normal else (),
        points=points,
        deciding=decides,
        deciders=_deciders(decides, detector, sources),
    )
    pictures = write_figures(run, report, chosen[:_SHEET_IMAGES])
    for name, chart in model.diagnostics().items():
        pictures[name] = run.directory / "figures" / f"{name}.png"
        figure = draw_lines(chart) if isinstance(chart, LineChart) else chart
        save_figure(figure, pictures[name])
    extras = cfg.report.get("extras", ())
    pictures |= write_extras(detector, data.test_samples, run.directory / "extras", extras)
    if cfg.report.enabled:
        write_report(
            run.directory / "report.html", report, max_images=cfg.report.max_images,
            max_side=cfg.report.max_side, max_megabytes=cfg.report.max_megabytes,
        )  # fmt: skip
    return pictures


def write_tables(run: SavedRun, data: AnomalyDataModule, evaluator: Evaluator) -> list[ScoreRow]:
    """Write scores.csv, and with masks what `src.compare` resamples the pixel metrics from."""
    rows = score_rows(data, evaluator)
    run.write_scores(rows)
    if evaluator.has_masks:
        indices = [row["index"] for row in evaluator.per_image_rows()]
        paths = {index: row.path for index, row in zip(indices, rows, strict=True)}
        histograms = evaluator.pixel_histograms()
        named = [paths[index] for index in histograms.image.tolist()]
        run.write_pixel_statistics(histograms, named)
    return rows


def score_rows(data: AnomalyDataModule, evaluator: Evaluator) -> list[ScoreRow]:
    """One row per test image, in the order of the data set."""
    rows = []
    for found in evaluator.per_image_rows():
        sample = data.samples[found["index"]]
        path, entry = sample.image_path, data.entry_of(sample)
        rows.append(
            ScoreRow(
                path=shown(path.relative_to(data.root) if path.is_relative_to(data.root) else path),
                label=sample.label,
                defect=sample.defect,
                score=found["score"],
                decision=found["decision"],
                map_max=found["map_max"],
                split=sample.split,
                iou=math.nan if found["iou"] is None else found["iou"],
                image=entry.content,
                mask=entry.mask,
            )
        )
    return rows


def write_figures(run: SavedRun, report: ReportData, chosen: Sequence[int]) -> dict[str, Path]:
    """Charts, a contact sheet and triptychs of the images most worth seeing, as PNG by name."""
    folder = run.directory / "figures"
    chart = score_chart(report.images, report.threshold.image)
    figures = {"scores": score_figure(chart)}
    figures |= {curve.kind: ranking_curve(curve) for curve in report.curves}
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    tiles, captions = [], []
    for row in (report.images[index] for index in chosen):
        if (picture := row.load_picture()) is None:
            continue
        captions.append(f"{row.outcome}: {row.path} ({row.score:.4g})")
        tiles.append(overlay(picture, report.scale))
        name = row.path.replace("/", "_").rsplit(".", 1)[0]
        sheet = triptych(picture, report.scale, captions[-1])
        save_png(sheet, fitting(folder / "images" / f"{name}.png"))
    if tiles:
        save_png(contact_sheet(tiles, captions), folder / "contact_sheet.png")
    names = [*figures, *(["contact_sheet"] if tiles else [])]
    return {name: folder / f"{name}.png" for name in names}


def _protocol(
    cfg: DictConfig,
    data: AnomalyDataModule,
    threshold: Threshold,
    metrics: Mapping[str, float],
    way: Calibration | None,
) -> ProtocolFacts:
    if threshold.oracle or (threshold.own_mask and not cfg.model.nfa.calibrate):
        way = None
    return ProtocolFacts(
        name=cfg.protocol,
        train_images=len(data.train_samples),
        calibration=way,
        held_out=len(data.calibration_samples),
        selection=checkpoint_choice(cfg.protocol, metrics),
        pixels=pixel_convention(cfg) if "test/pixel_auroc" in metrics else "",
    )


def _short_names(paths: list[Path]) -> list[str]:
    """Paths without the folders that all of them share: broken_large/003.png."""
    shared = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    if all(path.parent == shared for path in paths):
        shared = shared.parent  # one folder only: keep its name
    return [path.relative_to(shared).as_posix() for path in paths]


# --- pictures ----------------------------------------------------------------------------------


def _picture(
    sample: Sample, detector: Detector, sources: Sequence[Sample]
) -> Callable[[], Picture]:
    def make() -> Picture:
        image = read_sample(sample)
        found = detector.detect([image])[0]
        mask = None if sample.mask_path is None else detector.transform.mask(sample.mask_path)
        if mask is None and sample.label == NORMAL:
            mask = np.zeros(detector.transform.size, dtype=bool)
        return Picture(
            display=detector.transform.display(image),
            anomaly_map=found.anomaly_map,
            mask=mask,
            segmentation=found.mask,
            match=explain(detector, image, sources) if found.alarm else None,
            extra=found.extra,
        )

    return make


def _deciders(
    decides: Deciding | None, detector: Detector, sources: Sequence[Sample]
) -> dict[str, np.ndarray]:
    """The pictures that set the threshold as the network sees them, (H, W, 3) uint8 by path.

    Without a map: most models know these pictures, and would find nothing on them.
    """
    if decides is None:
        return {}
    paths = [decides.path, *(path for path, _ in decides.above[: _DECIDERS - 1])]
    return {
        path: detector.transform.display(read_sample(sample))
        for path in paths  # below the data root of the fit
        for sample in sources
        if shown(sample.image_path).endswith(f"/{path.lstrip('/')}")
    }


def _scale(detector: Detector, samples: list[Sample]) -> ColourScale:
    """One scale for the run, from its pictures, anchored where marked pixels begin."""
    found: list[Detection] = []
    for sample in samples[:: max(1, len(samples) // 32)]:
        found += detector.detect([read_sample(sample)])
    anchor = detector.threshold.pixel
    if detector.threshold.own_mask and found:  # regions decide, not the map that is coloured
        outside = np.concatenate([one.anomaly_map[~one.mask] for one in found])
        anchor = float(np.quantile(outside, 0.999))
    return ColourScale.fit([one.anomaly_map for one in found], anchor)
