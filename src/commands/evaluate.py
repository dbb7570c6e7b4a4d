"""A saved run on its own test set again, on other data, or at several checkpoints."""

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.table import Table

from src import experiment
from src.data.record import FILE_NAME as DATA
from src.detector import Detector, checked_data
from src.errors import ConfigError, SavedModelError
from src.evaluation.threshold import build_rule
from src.explaining import sources_of
from src.metrics import HEADLINES
from src.outputs import write_outputs
from src.reporting.run_table import print_result
from src.result import Threshold
from src.saved_run import SavedRun
from src.training import Work, build_trainer


def evaluate_run(cfg: DictConfig) -> dict[str, float]:
    """Metrics of `cfg.run` on the data of `cfg`; writes metrics.json, scores.csv and a report."""
    detector = Detector.load(Path(cfg.run), cfg.device)
    merged = _merge(detector.config, cfg)
    run = detector.run
    data = checked_data(run, None if cfg.get("data") is None else merged)
    if not data.test_samples:
        what, do = "There is nothing to evaluate.", "give data.abnormal_dir or data.normal_test_dir"
        raise ConfigError(what, found=f"{data.name} has no test images", do=do)
    default = run.directory / "evaluations" / f"{data.name}-{data.category}"
    out = SavedRun(Path(cfg.out or default))
    trainer = build_trainer(merged, out.directory, [], single_pass=True)
    work = Work(merged, out, trainer, detector.model, data)
    evaluator, threshold, metrics = experiment.evaluate(work, _threshold(cfg, detector))
    facts = run.read_json("manifest.json") | {"data_fingerprint": data.record.fingerprint}
    out.start(merged, facts, force=True)
    out.write_rows(DATA, data.record.rows())
    out.write_calibration(run.calibration())
    write_outputs(work, evaluator, threshold, metrics, sources_of(run))
    out.finish(metrics)
    print_result(out)
    if cfg.checkpoints:
        _compare_checkpoints(cfg, work, detector)
    return metrics


def _threshold(cfg: DictConfig, detector: Detector) -> Threshold | None:
    """The saved threshold, or what another rule makes of the run's normal scores; None: oracle."""
    if cfg.get("threshold") is None:
        return detector.threshold
    rule = build_rule(cfg.threshold)
    detector.model.own_mask = rule.needs_own_mask
    normal = detector.run.calibration()
    if normal is None and not (rule.needs_labels or rule.needs_own_mask):
        raise ConfigError(
            "The run kept no scores of normal images, which this threshold is set with.",
            found=f"no calibration.csv in {detector.run.directory}; its rule, "
            f"{detector.threshold.rule}, needs none",
            do="run again with calibration.fraction=0.1 and the threshold that you want; with the "
            "present run only its own threshold, threshold=f1_oracle and, for U-Flow, "
            "threshold=nfa are possible",
        )
    return rule.fit(normal)


def _compare_checkpoints(cfg: DictConfig, work: Work, detector: Detector) -> None:
    """One row of metrics per training checkpoint; the threshold stays that of the run."""
    folder = detector.run.directory / "checkpoints"
    wanted = [cfg.checkpoints] if isinstance(cfg.checkpoints, str) else list(cfg.checkpoints)
    patterns = ["*.ckpt" if name == "all" else name for name in wanted]
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not found:
        have = [path.name for path in folder.glob("*.ckpt")]
        what = "No such checkpoints."
        do = "keep some with trainer.checkpoint_keep_every_n_epochs=N when training"
        raise SavedModelError(what, found=f"{wanted} among {have or 'none'}", do=do)
    rows = []
    for path in found:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        detector.model.load_state_dict(state, strict=False)
        detector.model.eval()
        detector.model.after_fit(work.data.ordered_train_dataloader())
        _, _, metrics = experiment.evaluate(work, detector.threshold)
        rows.append({"checkpoint": path.name} | metrics)
    work.run.write_rows("checkpoints.csv", rows)
    shown = [metric for metric in HEADLINES if not metric.unit and metric.key in rows[0]]
    table = Table("checkpoint", *(metric.name for metric in shown))
    for row in rows:
        table.add_row(str(row["checkpoint"]), *(f"{row[metric.key]:.4f}" for metric in shown))
    Console().print(table)


def _merge(saved: DictConfig, cfg: DictConfig) -> DictConfig:
    """The run's config with the data and report of this call."""
    merged = saved.copy()
    with open_dict(merged):
        if cfg.get("data") is not None:
            merged.data = OmegaConf.to_container(cfg.data, resolve=False)
            merged.data.calibration_dir = None  # the threshold is the run's
        for node, mine in ((merged.report, cfg.report), (merged.evaluation, cfg.evaluation)):
            node.update({key: value for key, value in mine.items() if value is not None})
    return merged
