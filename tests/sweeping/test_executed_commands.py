"""Command lines of the sweep files, as W&B's agent would start them, really started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from src.commands.sweep import Search, load_sweep

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "sweeps").glob("*.yaml"))


def first_command(path: Path, tmp_path: Path) -> tuple[list[str], dict]:
    cfg = OmegaConf.create({"count": 1, "seed": 0, "extra": [], "retries": 0})
    search = Search(load_sweep(path), tmp_path / "sweep", cfg)
    words = search.task(search.next()).words
    return list(words), search.study.trials[0].params


def execute(words: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RUNS_DIR": str(tmp_path / "runs"),
        "DATA_DIR": str(tmp_path / "data"),
        "WANDB_MODE": "offline",
    }
    return subprocess.run(
        words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_program_reads_every_parameter_as_the_sweep_meant_it(path, tmp_path):
    words, values = first_command(path, tmp_path)
    config = yaml.safe_load(execute([*words, "--cfg", "job"], tmp_path).stdout)
    for name, value in values.items():
        node = config
        if name in ("optimizer", "scheduler"):  # groups that make model.optimizer, model.scheduler
            body = yaml.safe_load((REPOSITORY / "conf" / name / f"{value}.yaml").read_text())
            made = body["model"][name]
            assert made.items() <= config["model"][name].items()
            continue
        for part in name.split("."):
            node = node[part]
        if isinstance(node, dict):  # a group: the composed file names the model it stands for
            group = REPOSITORY / "conf" / name / f"{value}.yaml"
            assert node["name"] == yaml.safe_load(group.read_text())["name"]
        else:
            assert node == (yaml.safe_load(value) if isinstance(value, str) else value)


@pytest.mark.slow
def test_a_trial_started_by_its_command_line_reports_the_sweeps_metric(tmp_path):
    path = REPOSITORY / "sweeps" / "crn_demo.yaml"
    words, _ = first_command(path, tmp_path)
    execute([*words, "trainer.max_steps=4", "model.check_every=2"], tmp_path)
    [metrics] = tmp_path.glob("runs/**/metrics.json")
    assert load_sweep(path).metric in json.loads(metrics.read_text())
