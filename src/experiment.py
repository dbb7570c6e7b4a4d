"""The story of one run: data -> fit -> calibrate -> evaluate -> report.

This file alone knows the order (`make check` holds the house to it). Normal images alone reach
`fit` and `calibrate`; test labels are read by `evaluate` only.
"""

import logging
import time
from typing import NamedTuple

import pytorch_lightning as pl
from omegaconf import DictConfig

from src import manifest, processes, tracking
from src.beginning import Beginning, begin, find_run
from src.data.datamodule import AnomalyDataModule
from src.evaluation.evaluator import Evaluator, build_evaluator
from src.evaluation.speed import measure_latency, peak_memory_mb
from src.evaluation.threshold import build_rule
from src.evaluation.torch_metrics import CalibrationScores
from src.logs import logging_to, silence
from src.models.base import AnomalyModule
from src.models.build import build_model, method_class
from src.models.replay import Replay
from src.outputs import notes, write_outputs
from src.reporting.run_table import print_result
from src.result import NormalScores, Threshold
from src.saved_run import SavedRun
from src.training import Work, build_trainer, process_count, score_images, train

log = logging.getLogger(__name__)


class Result(NamedTuple):
    """What a run came to."""

    run: SavedRun
    metrics: dict[str, float]


def run_experiment(cfg: DictConfig) -> Result:
    """Run what `cfg` describes, or return the finished run that already did."""
    count = process_count(cfg)
    if count > 1:
        method_class(cfg).check_processes(count)
    if count > 1 and not processes.launched():
        run, _, _ = find_run(cfg)
        if run.finished and not cfg.force:
            return _already(run, cfg)
        processes.start(run_experiment, cfg, count)
        return Result(run, run.metrics())
    with processes.joined(count):
        return processes.from_first(lead(cfg)) if processes.leads() else follow(cfg)


def lead(cfg: DictConfig) -> Result:
    """The whole story, told by the only process or the first of several."""
    run, data, weights = find_run(cfg)
    with run.lock(), logging_to(run.directory / "log.txt"):
        if run.finished and not cfg.force:
            processes.from_first(None)
            return _already(run, cfg)

        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        data.setup()
        data.write_settled()
        data.announce()
        model = _model_for(cfg, data)
        begun = begin(cfg, run, data, model, weights)
        with tracking.open_loggers(cfg, run.directory) as loggers:
            processes.from_first(begun)
            trainer = build_trainer(cfg, run.directory, loggers, single_pass=model.single_pass)
            run.add_facts(manifest.describe_device(trainer))
            work = Work(cfg, run, trainer, model, data)
            fit(work, begun)
            evaluator, threshold, metrics = evaluate(work, calibrate(work))
            run.write_json("model/threshold.json", threshold.to_json())
            metrics |= {f"fit/{key}": value for key, value in run.read_json("fit.json").items()}
            metrics |= model.learning_metrics()

            pictures = write_outputs(work, evaluator, threshold, metrics, data.samples)
            tracking.log_results(loggers, metrics, pictures)
            data.require_unchanged()
            run.finish(metrics)
    print_result(run)
    return Result(run, metrics)


def follow(cfg: DictConfig) -> Result:
    """A further process: its share of the work. Each `from_first` here has its like in `lead`."""
    with silence():
        begun: Beginning | None = processes.from_first()
        if begun is not None:
            pl.seed_everything(cfg.seed, workers=True, verbose=False)
            data = AnomalyDataModule(cfg)
            data.setup()
            data.write_settled()
            model = _model_for(cfg, data)
            trainer = build_trainer(cfg, begun.run.directory, [], single_pass=model.single_pass)
            work = Work(cfg, begun.run, trainer, model, data)
            fit(work, begun)
            normal_scores(work)
            score_images(work, data.test_dataloader(shared=True), lambda *_: None)
        return processes.from_first()


def fit(work: Work, begun: Beginning) -> None:
    """Learn from normal images, or load what an interrupted run had already learnt."""
    _, run, _, model, data = work
    folder = run.directory / "model"
    if not begun.fitted:
        began = time.perf_counter()
        train(work, begun.checkpoint)
        if processes.leads():
            model.after_fit(data.ordered_train_dataloader())
            seconds = time.perf_counter() - began
            data.require_unchanged()
            model.save(folder)
            facts = {"seconds": seconds, "peak_memory_mb": peak_memory_mb()}
            run.write_json("fit.json", facts)
        processes.from_first(None)
    if begun.fitted or not processes.leads():
        model.load(folder)


def calibrate(work: Work) -> Threshold | None:
    """The threshold from normal images the model has not seen; None for a labelled oracle."""
    normal = normal_scores(work)
    work.run.write_calibration(normal)
    return build_rule(work.cfg.threshold).fit(normal)


def normal_scores(work: Work) -> NormalScores | None:
    """Scores of normal images the model has not seen: of those held out, else the model's own."""
    cfg, _, _, model, data = work
    model.own_mask = build_rule(cfg.threshold).needs_own_mask
    samples = data.calibration_samples
    if samples:
        collected = CalibrationScores()
        loader = data.calibration_dataloader(shared=True)
        score_images(work, loader, collected.update, own_share=True)
        scores, highest = collected.compute().unbind(dim=1)
        normal = NormalScores(scores, highest)
    elif own := model.held_out_scores():
        normal, samples = own, data.train_samples
    else:
        return None
    paths = [data.entry_of(sample).path for sample in samples]
    return normal._replace(paths=paths, categories=[sample.category for sample in samples])


def evaluate(
    work: Work, threshold: Threshold | None
) -> tuple[Evaluator, Threshold, dict[str, float]]:
    """Metrics of the test images; the only place that reads their labels and masks.

    A missing threshold is an oracle's: it is chosen here, from labels, and marked as such.
    """
    cfg, _, _, model, data = work
    evaluator = build_evaluator(cfg, data.transform, data.samples, model.roi)
    score_images(work, data.test_dataloader(shared=True), evaluator.update)
    threshold = threshold or evaluator.oracle_threshold()
    metrics = evaluator.compute(threshold, data.samples)
    for note in notes(cfg, evaluator):
        log.warning("%s", note)
    latency_images = cfg.evaluation.latency_images
    speed = measure_latency(Replay(model), data.test_dataloader(), latency_images)
    return evaluator, threshold, metrics | speed


def _model_for(cfg: DictConfig, data: AnomalyDataModule) -> AnomalyModule:
    """The method, which looks at the part of the images that counts."""
    model, roi = build_model(cfg, data.image_size), data.roi()
    if roi is not None:
        model.look_at(roi)
    return model


def _already(run: SavedRun, cfg: DictConfig) -> Result:
    run.point_to_data(cfg)
    print_result(run, repeated=True)
    return Result(run, run.metrics())
