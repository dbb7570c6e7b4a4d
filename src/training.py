"""The Lightning trainer of a run: hardware, checkpoints to resume from, progress, NaN guard."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning import callbacks as pl_callbacks
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.distributed import is_torchelastic_launched

from src import processes
from src.data.datamodule import AnomalyDataModule
from src.data.transforms import ImageTransform
from src.errors import ConfigError, TrainingError
from src.models.base import AnomalyModule
from src.processes import leads, whole
from src.result import Prediction
from src.saved_run import SavedRun
from src.tracking import ExtrasWhileTraining

log = logging.getLogger(__name__)

#: Keys of `trainer` that go to Lightning as they are.
_OF_LIGHTNING = (
    "max_epochs", "max_steps", "limit_train_batches", "check_val_every_n_epoch",
    "val_check_interval", "num_sanity_val_steps", "gradient_clip_val", "log_every_n_steps",
)  # fmt: skip


class Work(NamedTuple):
    """What a run works with, from its first image to its report."""

    cfg: DictConfig
    run: SavedRun
    trainer: pl.Trainer
    model: AnomalyModule
    data: AnomalyDataModule


def build_trainer(
    cfg: DictConfig, directory: Path, loggers: list[Logger], *, single_pass: bool
) -> pl.Trainer:
    """A trainer for fitting and predicting; checkpoints go to `directory/checkpoints`."""
    _quieten()
    places = _places(cfg)
    if processes.count() == 1:  # whatever the config asks for
        devices = 1 if process_count(cfg) > 1 else places["devices"]
        places |= {"strategy": "auto", "num_nodes": 1, "devices": devices}
    if cfg.hardware.threads:
        torch.set_num_threads(cfg.hardware.threads)
    return pl.Trainer(
        **places,
        # A detector scores in float32: a bank of rounded features would not fit.
        precision="32-true" if single_pass else cfg.hardware.precision,
        **{key: cfg.trainer[key] for key in _OF_LIGHTNING},
        callbacks=_callbacks(cfg, directory, single_pass=single_pass),
        logger=loggers,
        default_root_dir=directory,
        enable_model_summary=False,
        enable_checkpointing=not single_pass,
        deterministic="warn",
        use_distributed_sampler=False,  # loaders give each process its share
    )


def process_count(cfg: DictConfig) -> int:
    """How many processes the `hardware` group asks for, on all nodes together."""
    if cfg.hardware.devices == 1 and cfg.hardware.num_nodes == 1:
        return 1
    _quieten()
    try:
        places = pl.Trainer(
            **_places(cfg), logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
    except (MisconfigurationException, ValueError) as error:
        what = "These hardware settings do not fit together, or not this machine."
        do = "see conf/hardware: hardware=cpu, gpu, multi_gpu or cluster"
        raise ConfigError(what, found=str(error), do=do) from error
    wanted = places.num_devices * places.num_nodes
    if wanted > 1 and not isinstance(places.strategy, DDPStrategy):
        found = f"hardware.strategy={cfg.hardware.strategy}"
        do = "set hardware.strategy=ddp, or hardware.devices=1"
        raise ConfigError("Several processes need hardware.strategy=ddp.", found=found, do=do)
    return wanted


def _places(cfg: DictConfig) -> dict[str, Any]:
    """Where a trainer works."""
    hardware = cfg.hardware
    if hardware.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        found = f"hardware.accelerator={hardware.accelerator}, torch.cuda.is_available() is False"
        do = "install a CUDA build of torch and a driver, or use hardware=cpu"
        raise ConfigError("hardware=gpu needs a GPU that torch can use.", found=found, do=do)
    return {
        **{key: hardware[key] for key in ("accelerator", "devices", "strategy", "num_nodes")},
        # Under our own launcher as under torchrun; Lightning would look for SLURM first.
        "plugins": [TorchElasticEnvironment()] if is_torchelastic_launched() else None,
    }


def _quieten() -> None:
    """Silence Lightning's advice that does not apply here; its errors stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",  # small sets are decoded in this process on purpose
        ".*training batches.*smaller than the logging.*",
        ".*configure_optimizers.*returned `None`.*",  # a memory bank has no optimizer
        ".*no `validation_step`.*",
        ".*Total length of .* across ranks is zero.*",  # no image chooses the epoch
        ".*module.s. in eval mode at the start of training.*",  # frozen backbones
        ".*LeafSpec.*deprecated.*",  # torch 2.15 about Lightning's own code
        ".*isinstance.treespec.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest usable checkpoint of an interrupted run; a damaged one becomes `.broken`."""
    found = list((directory / "checkpoints").glob("last*.ckpt"))
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return path
        except Exception as error:  # a damaged zip, a truncated tensor, a foreign pickle
            log.warning("%s cannot be used (%s); starting without it", path, type(error).__name__)
            path.replace(path.with_suffix(".broken"))
    return None


def train(work: Work, checkpoint: Path | None) -> None:
    """Fit, from a checkpoint if there is one; the model stays on the trainer's device."""
    work.trainer.fit(work.model, datamodule=work.data, ckpt_path=checkpoint, weights_only=True)
    work.model.eval().to(work.trainer.strategy.root_device)  # Lightning moved it to the CPU


def score_images(
    work: Work, loader: Iterable[dict[str, Tensor]],
    consume: Callable[[dict[str, Tensor], Prediction], None], *, own_share: bool = False,
) -> None:  # fmt: skip
    """Predict every batch of `loader` on the trainer's device and hand it to `consume`, on CPU.

    Of several processes, each predicts its share. With `own_share` each consumes it too, for
    metrics that gather small states themselves; otherwise the first one consumes whole batches, as
    maps of a whole test set may not fit in the memory of every process.
    """

    def hand_over(_: pl.Trainer, __: pl.LightningModule, found: Any, batch: Any, *___: int) -> None:
        facts = {key: batch[key] for key in ("index", "label", "mask")}
        if not own_share:
            facts = {key: whole(rows, batch) for key, rows in facts.items()}
            found = found.each(lambda rows: whole(rows, batch))
        if own_share or leads():
            consume(facts, found.cpu())

    callback = LambdaCallback(on_predict_batch_end=hand_over)
    callbacks: list[pl.Callback] = work.trainer.callbacks  # type: ignore[attr-defined]
    callbacks.append(callback)
    try:
        work.trainer.predict(work.model, dataloaders=loader, return_predictions=False)
    finally:
        callbacks.remove(callback)
    work.model.eval().to(work.trainer.strategy.root_device)  # Lightning moved it to the CPU


class _StopOnNaN(pl.Callback):
    """Stops at the first loss that is not a number, with advice instead of hours of nothing."""

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, outputs: Any, *__: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        every = trainer.log_every_n_steps or 50  # type: ignore[attr-defined]
        if not isinstance(loss, Tensor) or trainer.global_step % every:
            return  # reading the loss waits for the device: only as often as it is logged
        if not torch.isfinite(loss):
            raise TrainingError(
                "The loss is not a number.",
                found=f"{loss.item()} at step {trainer.global_step}",
                do="lower the learning rate, use hardware.precision=32-true, or set "
                "trainer.gradient_clip_val=1; the last good checkpoint is kept",
            )


def _callbacks(cfg: DictConfig, directory: Path, *, single_pass: bool) -> list[pl.Callback]:
    bar: pl.Callback = pl_callbacks.TQDMProgressBar(refresh_rate=0)  # no bar in log files
    if sys.stdout.isatty():
        bar = pl_callbacks.RichProgressBar(leave=False)
    chosen = [bar, _StopOnNaN()]
    trainer = cfg.trainer
    if every := trainer.get("log_images_every_n_epochs"):
        chosen.append(ExtrasWhileTraining(every, ImageTransform(**cfg.transform)))
    if single_pass:
        return chosen
    where: dict[str, Any] = {"dirpath": directory / "checkpoints", "save_on_train_epoch_end": True}
    chosen.append(_NewestCheckpoint(
        **where, every_n_epochs=trainer.checkpoint_every_n_epochs, filename="last",
        enable_version_counter=False,
    ))  # fmt: skip
    if every := trainer.checkpoint_keep_every_n_epochs:
        chosen.append(ModelCheckpoint(
            **where, every_n_epochs=every, filename="epoch{epoch:04d}", save_top_k=-1,
            auto_insert_metric_name=False,
        ))  # fmt: skip
    return chosen


class _NewestCheckpoint(ModelCheckpoint):
    """One file, overwritten, also at the end. Lightning's `save_last` alone waits for the end."""

    def on_train_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")
