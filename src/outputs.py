"""What a run leaves behind for people: scores.csv, figures, report.html, a table on the console."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
import torch
from omegaconf import DictConfig, OmegaConf

from src.data.datamodule import AnomalyDataModule
from src.data.images import read_sample
from src.data.samples import UNKNOWN, Sample
from src.detector import Detector
from src.evaluation.evaluator import Evaluator
from src.evaluation.threshold import POINTS, Deciding, deciding, operating_points
from src.evaluation.view import pixel_convention
from src.explaining import picture_of
from src.extras import write_extras
from src.files import atomic, fitting, shown
from src.reporting.chart_files import draw_lines, ranking_curve, save_figure, score_figure
from src.reporting.charts import score_chart
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import contact_sheet, overlay, save_png, triptych
from src.reporting.records import Picture, ProtocolFacts, ReportData, choose_pictures
from src.reporting.report import write_report
from src.reporting.wording import checkpoint_choice, method_title
from src.result import NormalScores, Threshold
from src.saved_run import SavedRun, ScoreRow
from src.training import Work

_SHEET_IMAGES = 24  # pictures on the contact sheet and as triptychs
_DECIDERS = 6  # pictures that set the threshold


def write_outputs(
    work: Work, evaluator: Evaluator, threshold: Threshold, metrics: Mapping[str, float],
    sources: Sequence[Sample],
) -> dict[str, Path]:  # fmt: skip
    """Write scores.csv, figures and report of a model fitted on `sources`; its pictures by name."""
    cfg, run, _, model, data = work
    rows = write_tables(run, data, evaluator)
    samples = [data.samples[row["index"]] for row in evaluator.per_image_rows()]
    device = next((value.device for value in model.state_dict().values()), torch.device("cpu"))
    detector = Detector(model, data.transform, threshold, cfg, run, device)
    folders = {Path(row.path).parent for row in rows}
    shared = Path(os.path.commonpath(folders)) if folders else Path()
    shared = shared.parent if len(folders) == 1 else shared  # one folder only: keep its name
    images = [row._replace(path=Path(row.path).relative_to(shared).as_posix()) for row in rows]
    chosen = choose_pictures(images, threshold.image, cfg.report.max_images)
    scale = _scale(detector, [samples[i] for i in chosen])
    run.write_json("figures/scale.json", asdict(scale))
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
        protocol=_protocol(work, normal, threshold, metrics),
        images=images,
        pictures={i: partial(picture_of, detector, samples[i], sources) for i in chosen},
        scale=scale,
        recalls=evaluator.defect_recalls(data.samples),
        curves=evaluator.curves(),
        config_yaml=OmegaConf.to_yaml(cfg, resolve=True),
        manifest=manifest,
        command=shlex.join(["python", "-m", "src.run", *manifest.get("command", [])[1:]]),
        notes=notes(cfg, evaluator),
        normal_scores=sorted(normal.image.tolist()) if normal else (),
        points=points,
        deciding=decides,
        deciders=_deciders(decides, detector, sources),
    )
    pictures = write_figures(run, report, chosen[:_SHEET_IMAGES])
    for name, chart in model.diagnostics().items():
        pictures[name] = run.directory / "figures" / f"{name}.png"
        save_figure(draw_lines(chart), pictures[name])
    write_submission(detector, data.test_samples, run.directory / "submission")
    extras = cfg.report.get("extras", ())
    pictures |= write_extras(detector, data.test_samples, run.directory / "extras", extras)
    if cfg.report.enabled:
        write_report(
            run.directory / "report.html", report, max_images=cfg.report.max_images,
            max_side=cfg.report.max_side, max_megabytes=cfg.report.max_megabytes,
        )  # fmt: skip
    return pictures


def notes(cfg: DictConfig, evaluator: Evaluator) -> list[str]:
    """What a reader must know first: of the recipe, of the metrics."""
    of_recipe = OmegaConf.select(cfg, "model.recipe.note")
    return [*([of_recipe] if of_recipe else []), *evaluator.notes()]


def _protocol(
    work: Work, normal: NormalScores | None, threshold: Threshold, metrics: Mapping[str, float]
) -> ProtocolFacts:
    cfg, data = work.cfg, work.data
    calibrated = not threshold.oracle and (not threshold.own_mask or cfg.model.nfa.calibrate)
    return ProtocolFacts(
        name=cfg.protocol,
        train_images=len(data.train_samples),
        calibration=normal.way if normal and calibrated else None,
        held_out=len(data.calibration_samples),
        selection=checkpoint_choice(cfg.protocol, metrics),
        pixels=pixel_convention(cfg) if "test/pixel_auroc" in metrics else "",
    )


def write_tables(run: SavedRun, data: AnomalyDataModule, evaluator: Evaluator) -> list[ScoreRow]:
    """Write scores.csv, and with masks what `src.compare` resamples the pixel metrics from."""
    rows = {}
    for found in evaluator.per_image_rows():
        sample = data.samples[found["index"]]
        entry = data.entry_of(sample)
        rows[found["index"]] = ScoreRow(
            path=shown(entry.path), label=sample.label, defect=sample.defect, split=sample.split,
            image=entry.content, mask=entry.mask,
            **{key: found[key] for key in ("score", "decision", "map_max", "iou", "aupimo")},
        )  # fmt: skip
    run.write_scores(list(rows.values()))
    if evaluator.has_masks:
        histograms = evaluator.pixel_histograms()
        run.write_pixel_statistics(histograms, [rows[i].path for i in histograms.image.tolist()])
    return list(rows.values())


def write_figures(run: SavedRun, report: ReportData, chosen: Sequence[int]) -> dict[str, Path]:
    """Charts, a contact sheet and triptychs of the images most worth seeing, as PNG by name."""
    folder, tiles, captions = run.directory / "figures", [], []
    figures = {"scores": score_figure(score_chart(report.images, report.threshold.image))}
    figures |= {curve.kind: ranking_curve(curve) for curve in report.curves}
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    for row, picture in ((report.images[i], report.pictures[i]()) for i in chosen):
        captions.append(f"{row.outcome}: {row.path} ({row.score:.4g})")
        tiles.append(overlay(picture, report.scale))
        name = row.path.replace("/", "_").rsplit(".", 1)[0]
        sheet = triptych(picture, report.scale, captions[-1])
        save_png(sheet, fitting(folder / "images" / f"{name}.png"))
    written = {name: folder / f"{name}.png" for name in figures}
    if tiles:
        written["contact_sheet"] = folder / "contact_sheet.png"
        save_png(contact_sheet(tiles, captions), written["contact_sheet"])
    return written


def _deciders(
    decides: Deciding | None, detector: Detector, sources: Sequence[Sample]
) -> list[tuple[str, float, Picture]]:
    """The pictures that set the threshold, with their maps as of pictures never seen.

    `sources` are numbered as the model numbers them; paths are below the data root of the fit.
    """
    if decides is None:
        return []
    places = [shown(sample.image_path) for sample in sources]
    found = []
    for path, score in [(decides.path, decides.score), *decides.above][:_DECIDERS]:
        ending = f"/{path.lstrip('/')}"
        index = next((i for i, place in enumerate(places) if place.endswith(ending)), None)
        if index is None:
            continue
        image = read_sample(sources[index])
        batch = detector.transform(image)[None].to(detector.device)
        with torch.inference_mode():
            (detection,) = detector.decide(detector.model.unseen(batch, index))
        mask = detection.mask if detector.threshold.own_mask else None
        picture = Picture(detector.transform.display(image), detection.anomaly_map, None, mask)
        found.append((path, score, picture))
    return found


def _scale(detector: Detector, samples: list[Sample]) -> ColourScale:
    """One scale for the run, from its pictures, anchored where marked pixels begin."""
    some = samples[:: max(1, len(samples) // 32)]
    found = [one for sample in some for one in detector.detect([read_sample(sample)])]
    anchor = detector.threshold.pixel
    if detector.threshold.own_mask and found:  # regions decide, not the map that is coloured
        outside = np.concatenate([one.anomaly_map[~one.mask] for one in found])
        anchor = float(np.quantile(outside, 0.999))
    return ColourScale.fit([one.anomaly_map for one in found], anchor)


def write_submission(detector: Detector, samples: Sequence[Sample], folder: Path) -> None:
    """Write what MVTec AD 2 (benchmark.mvtec.com) wants of images whose labels it keeps.

    For `can/test_private/000_regular.png` the map `anomaly_images/.../000_regular.tiff`, float16 in
    raw units, and the pixels above the deployed threshold, 0 or 255, as
    `anomaly_images_thresholded/.../000_regular.png`, both at the size of the image.
    """
    for sample in (one for one in samples if one.label == UNKNOWN):
        image = read_sample(sample)
        size, name = (image.height, image.width), Path(*sample.image_path.parts[-3:])
        (found,) = detector.detect([image])
        largest = np.finfo(np.float16).max
        full = detector.to_original(found.anomaly_map, size).clip(-largest, largest)
        target = (folder / "anomaly_images" / name).with_suffix(".tiff")
        with atomic(target) as partial:
            tifffile.imwrite(partial, full.astype(np.float16))
        decided = np.uint8(255) * (detector.to_original(found.mask, size) > 0.5)
        save_png(decided, (folder / "anomaly_images_thresholded" / name).with_suffix(".png"))
