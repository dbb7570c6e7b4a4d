"""The story of one run: data -> fit -> calibrate -> evaluate -> report.

This file alone knows the order. Models know nothing of metrics, files or loggers; evaluation knows
nothing of models. Normal images alone reach `fit` and `calibrate`; test labels are read by
`evaluate` only.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from src import manifest, tracking
from src.data.build import build_datamodule
from src.data.datamodule import AnomalyDataModule
from src.evaluation.evaluator import Evaluator, build_evaluator
from src.evaluation.speed import measure_latency, peak_memory_mb
from src.evaluation.threshold import CalibrationScores, Threshold, build_rule
from src.logs import logging_to
from src.models.base import AnomalyModule
from src.models.build import build_model
from src.reporting.outputs import print_result, write_outputs
from src.saved_run import SavedRun, run_directory
from src.training import build_trainer, interruptible, last_checkpoint, score_images

log = logging.getLogger(__name__)


class Result(NamedTuple):
    """What a run came to."""

    run: SavedRun
    metrics: dict[str, float]


def run_experiment(cfg: DictConfig) -> Result:
    """Run what `cfg` describes, or return the finished run that already did."""
    run = SavedRun(run_directory(cfg))
    with run.lock(), logging_to(run.directory / "log.txt"):
        if run.finished and not cfg.force:
            print_result(run, repeated=True)
            return Result(run, run.metrics())

        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        data = build_datamodule(cfg)
        data.prepare_data()
        data.setup()
        data.announce()
        OmegaConf.update(cfg, "data.bit_depth", data.bit_depth, force_add=True)  # as it was settled
        model = build_model(cfg, data.image_size)
        weights = getattr(model.backbone, "identity", None)
        run.start(cfg, manifest.describe_run(data.fingerprint(), weights), force=cfg.force)
        with tracking.open_loggers(cfg, run.directory) as loggers:
            trainer = build_trainer(cfg, run.directory, loggers, single_pass=model.single_pass)

            fit(run, trainer, model, data)
            threshold = calibrate(cfg, run, trainer, model, data)
            evaluator, threshold, metrics = evaluate(cfg, trainer, model, data, threshold)
            run.write_json("model/threshold.json", threshold.to_json())
            metrics |= {f"fit/{key}": value for key, value in run.read_json("fit.json").items()}
            metrics |= model.learning_metrics()

            pictures = write_outputs(
                cfg, run, model, data, evaluator, threshold, metrics, data.samples
            )
            tracking.log_results(loggers, metrics, pictures)
            run.finish(metrics)
    print_result(run)
    return Result(run, metrics)


def fit(run: SavedRun, trainer: pl.Trainer, model: AnomalyModule, data: AnomalyDataModule) -> None:
    """Learn from normal images, or load what an interrupted run had already learnt."""
    folder = run.directory / "model"
    if run.fitted:
        model.load(folder)
        return
    began = time.perf_counter()
    with interruptible(trainer):
        start = last_checkpoint(run.directory)
        trainer.fit(model, datamodule=data, ckpt_path=start, weights_only=True)
    model.eval()
    model.after_fit(data.ordered_train_dataloader())
    seconds = time.perf_counter() - began
    model.save(folder)
    run.write_json("fit.json", {"seconds": seconds, "peak_memory_mb": peak_memory_mb()})


def calibrate(
    cfg: DictConfig,
    run: SavedRun,
    trainer: pl.Trainer,
    model: AnomalyModule,
    data: AnomalyDataModule,
) -> Threshold | None:
    """The threshold from normal images the model has not seen; None for a labelled oracle."""
    rule = build_rule(cfg.threshold)
    model.wants_log_nfa = rule.wants_log_nfa
    normal = model.held_out_scores()
    if normal is None and data.calibration_samples:
        collected = CalibrationScores()
        score_images(trainer, model, data.calibration_dataloader(), collected.update)
        normal = collected.result()
    run.write_calibration(normal)
    return None if rule.needs_labels else rule.fit(normal)


def evaluate(
    cfg: DictConfig,
    trainer: pl.Trainer,
    model: AnomalyModule,
    data: AnomalyDataModule,
    threshold: Threshold | None,
) -> tuple[Evaluator, Threshold, dict[str, float]]:
    """Metrics of the test images; the only place that reads their labels and masks.

    A missing threshold is an oracle's: it is chosen here, from labels, and marked as such.
    """
    evaluator = build_evaluator(cfg, data.transform, data.samples)
    score_images(trainer, model, data.test_dataloader(), evaluator.update)
    threshold = threshold or evaluator.oracle_threshold()
    metrics = evaluator.compute(threshold, data.samples)
    for note in evaluator.notes():
        log.warning("%s", note)
    speed = measure_latency(model, data.test_dataloader(), cfg.evaluation.latency_images)
    return evaluator, threshold, metrics | speed
