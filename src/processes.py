"""Several processes, one run: the first leads, each takes its share of every batch.

`hardware.devices=4 hardware.strategy=ddp` starts four; under torchrun or srun they are there. The
first one alone owns the run: lock, folder, downloads, printing and every file; the others wait for
its decisions. A batch is divided as [rank::count], so that results are those of one process.
"""

import atexit
import contextlib
import functools
import logging
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig
from torch import Tensor
from torch.distributed import TCPStore, rendezvous  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import ProcessException, spawn

from src.errors import ConfigError, TrainingError, root_of

T = TypeVar("T")

#: ours: the others wait while the first one downloads, waits for a lock, or draws the report.
PATIENCE = timedelta(days=7)
_GRACE_S = 5.0  # ours: for the others to end by themselves once one has failed


def count() -> int:
    """Processes that work on this run; 1 when it is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def leads() -> bool:
    """Whether this process decides and writes."""
    return rank() == 0


def from_first(value: T | None = None) -> T:
    """What the first process gives, in all of them; the others wait for it."""
    box = [value]
    if count() > 1:
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return cast(T, box[0])


def own(rows: Tensor) -> Tensor:
    """This process's share of what belongs to the images of a whole batch; at least one row."""
    share = rows[rank() :: count()]
    return share if len(share) else rows[:1]


def whole(rows: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Rows (n, ...) of a whole batch in its order, from each process's rows of its share."""
    if count() == 1:
        return rows
    images, processes = int(batch["of"]), count()
    padded = rows.new_zeros(-(-images // processes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:images]


def weight(batch: Mapping[str, Tensor]) -> Tensor | float:
    """Factor of this share's mean loss, so that the mean over processes is that of the batch."""
    if count() == 1:
        return 1.0
    mine = torch.div(batch["of"] - rank() + count() - 1, count(), rounding_mode="floor")
    return mine * count() / batch["of"]


def launched() -> bool:
    """Whether torchrun, srun or `start` has started the processes of the run."""
    by_srun = SLURMEnvironment.detect() and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    return dist.is_torchelastic_launched() or by_srun


@contextlib.contextmanager
def joined(processes: int) -> Iterator[None]:
    """Be one of the processes; the first error of any is raised, the others end with SystemExit."""
    if processes == 1:
        yield
        return
    store = _join(processes)
    try:
        yield
    except Exception as error:
        if store.add("failed", 1) > 1:
            raise SystemExit(1) from error
        raise


def start(work: Callable[[DictConfig], Any], cfg: DictConfig, processes: int) -> None:
    """Do `work(cfg)` in so many new processes and wait for them.

    When one fails, or Ctrl-C comes, all end; what the first that failed has raised is raised here.
    """
    store: Any = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    members: Any = spawn(  # type: ignore[no-untyped-call]
        _member, (work, cfg, store.port, processes), processes, join=False
    )
    try:
        while not members.join(grace_period=_GRACE_S):
            pass
    except ProcessException as gone:
        if not store.check(["error"]):
            what = "A process of the run has ended unexpectedly."
            do = "lower data.batch_size if memory ran out; run the same command to continue"
            raise TrainingError(what, found=gone.msg, do=do) from gone
        error, text = pickle.loads(store.get("error"))
        raise error from RuntimeError(f"in a process of the run:\n{text}")
    finally:
        alive = [process for process in members.processes if process.is_alive()]
        for process in alive:  # interrupt what still works, kill what does not listen
            os.kill(process.pid, signal.SIGINT)
        for process in alive:
            process.join(_GRACE_S)
            if process.is_alive():
                process.kill()
                process.join()


def _member(number: int, work: Callable[[DictConfig], Any], cfg: Any, port: int, all_: int) -> None:
    """The life of a started process; its environment is what torchrun would have made."""
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(all_),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "goodparts",
    }  # fmt: skip
    torch.set_num_threads(max(1, torch.get_num_threads() // all_))
    try:
        work(cfg)
        _leave()  # such a process calls no exit handlers
    except Exception as error:
        # the error, as the user's mistake that it may be, and its stack trace as a cause
        text = "".join(traceback.format_exception(error))
        try:
            packed = pickle.dumps((root_of(error), text))
            pickle.loads(packed)
        except Exception:  # errors of libraries need not survive the journey
            packed = pickle.dumps((RuntimeError(str(error)), text))
        store: Any = TCPStore("127.0.0.1", port, is_master=False)
        store.set("error", packed)
        sys.exit(1)


@functools.cache
def _join(processes: int) -> Any:
    """Meet the other processes, once in the life of this one."""
    if not dist.is_torchelastic_launched():
        slurm = SLURMEnvironment()
        os.environ |= {
            "RANK": str(slurm.global_rank()), "WORLD_SIZE": str(slurm.world_size()),
            "MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port),
        }  # fmt: skip
    if int(os.environ["WORLD_SIZE"]) != processes:
        raise ConfigError(
            "The processes that were started are not those of the configuration.",
            found=f"{os.environ['WORLD_SIZE']} processes; hardware asks for {processes}",
            do="let hardware.devices x hardware.num_nodes be the number of processes",
        )
    store, number, size = next(rendezvous("env://"))
    # Decisions travel by gloo, tensors on a GPU by NCCL.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
    atexit.register(_leave)
    return store


def _leave() -> None:
    """End the threads of the group before the process ends; they abort it otherwise."""
    if dist.is_initialized():
        dist.destroy_process_group()
