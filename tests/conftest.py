"""A tiny finished run that several rooms test with."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from pathlib import Path

import pytest

import src.composing  # noqa: F401  tells Hydra the schemas of conf/

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("CACHE_DIR", tempfile.mkdtemp(prefix="goodparts-cache-"))

#: Overrides that make any run tiny: 8 drawn gears of 64 px, a few seconds on one core.
TINY = (
    "experiment=demo",
    "data.synthetic.size=64",
    "data.synthetic.train=8",
    "data.synthetic.test_normal=4",
    "data.synthetic.test_defective=6",
    "transform.resize=64",
    "transform.crop=null",
    "model.target_dim=64",
    "evaluation.size=64",
    "evaluation.bootstrap=50",
    "evaluation.latency_images=2",
    "report.max_images=4",
    "hardware.num_workers=0",
)


@pytest.fixture(scope="session")
def drawn_data(tmp_path_factory):
    """A DATA_DIR for drawn parts."""
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, drawn_data) -> Path:
    """Folder of a finished PatchCore run; tests must not change it."""
    from src.experiment import run_experiment

    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(drawn_data))
        patch.delenv("WEIGHTS_DIR", raising=False)
        cfg = compose_app("run", *TINY, f"runs_dir={runs}")
        return run_experiment(cfg).run.directory


@pytest.fixture(scope="session")
def ray_address():
    """A Ray of two cores and one pretended GPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def drawn_images(finished_run) -> list[Path]:
    """The test images of the finished run: 4 good ones, 6 defective ones."""
    from src.saved_run import SavedRun

    run = SavedRun(finished_run)  # other tests draw more into the shared DATA_DIR
    return sorted(Path(run.config().data.root) / path for path in run.scores()["path"])


def compose_app(name: str, *overrides: str):
    """The config of an entry point as the command line would make it."""
    from src.composing import compose
    from src.options import plain

    return plain(compose(name, overrides))


@pytest.fixture
def app_config():
    """Compose the config of an entry point: app_config("predict", "run=...")."""
    return compose_app


@pytest.fixture
def program(monkeypatch, capfd):
    """`python -m src.<name> words` in this process: program("run", "seed=1") -> code, printed."""

    def start(name: str, *words: str):
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as left:
            runpy.run_module(f"src.{name}", run_name="__main__")
        return left.value.code, capfd.readouterr()

    return start


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Overrides that make any run tiny."""
    return TINY
