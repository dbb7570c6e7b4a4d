from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.mistakes import explain_overrides

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-m", "src.run", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_help_answers_in_a_few_seconds_and_shows_groups():
    for _ in range(4):  # the machine may be busy with other tests: one good time is enough
        began = time.perf_counter()
        answer = run("--help")
        if (seconds := time.perf_counter() - began) < 3:
            break
    assert answer.returncode == 0
    for word in ("model:", "patchcore", "backbone:", "experiment=demo", "--cfg job"):
        assert word in answer.stdout
    # 0.6 s on an idle core; the machine may be busy with other tests
    assert seconds < 3, f"{seconds:.1f} s"


@pytest.mark.parametrize(
    "name", sorted({p.stem for p in (ROOT / "conf").glob("*.yaml")} - {"program"})
)
def test_every_program_has_a_help_of_its_own_with_everything_filled_in(name, program):
    code, said = program(name, "--help")
    assert code == 0
    assert f"python -m src.{name}" in said.out
    assert "$CONFIG" not in said.out and "$APP" not in said.out


def test_help_does_not_import_torch():
    code = "import sys, src.run; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (["model=patchcor"], "'patchcore'"),
        (["backbone=resnet81"], "'resnet18'"),
        (["data.categry=bottle"], "'data.category'"),
        (["modle=patchcore"], "'model'"),
        (["model=patchcore", "model.coreset.rato=0.1"], "'model.coreset.ratio'"),
        (["sead=1"], "'seed'"),
        (["hardware=gpuu"], "'gpu'"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_name(overrides, hint):
    assert hint in str(explain_overrides(overrides, "run"))


def test_valid_overrides_need_no_explanation():
    assert explain_overrides(["model=patchcore", "seed=3"], "run") is None


def test_a_typo_exits_with_two_and_without_a_stack_trace():
    answer = run("data.categry=bottle")
    assert answer.returncode == 2
    assert "data.category" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_debug_shows_the_stack_trace():
    assert "Traceback" in run("data.categry=bottle", "debug=true").stderr


def test_an_unknown_category_names_the_nearest_one(tmp_path, monkeypatch, program):
    (tmp_path / "mvtec" / "bottle" / "train" / "good").mkdir(parents=True)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    words = ("data.category=botle", "data.download=false", "backbone=efficientnet_lite0")
    code, said = program("run", *words)
    assert code == 2
    assert "bottle" in said.err
    assert "Traceback" not in said.err
    assert not list(tmp_path.glob("runs/**/config.yaml")), "nothing half-written stays"


def test_dotenv_is_read_but_the_shell_wins(tmp_path):
    (tmp_path / ".env").write_text("RUNS_DIR=from_dotenv\n")
    environment = {k: v for k, v in os.environ.items() if k != "RUNS_DIR"}
    environment["PYTHONPATH"] = str(ROOT)

    def resolved(**extra):
        return subprocess.run(
            [sys.executable, "-m", "src.run", "--cfg", "job", "--resolve"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**environment, **extra},
            timeout=60,
        ).stdout

    assert "runs_dir: from_dotenv" in resolved()
    assert "runs_dir: from_shell" in resolved(RUNS_DIR="from_shell")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_inside_an_evaluated_text_exits_with_130_too():
    """Python would end itself by SIGINT after a plain KeyboardInterrupt, though it was caught."""
    code = (
        "import os, signal, time\n"
        "from src import command_line\n"
        "def interrupted(*_):\n"
        "    eval('(os.kill(os.getpid(), signal.SIGINT), time.sleep(5))')\n"
        "command_line._start = interrupted\n"
        "command_line.program('run', 'src.commands.run:run')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 130, done.stderr
    assert "Interrupted" in done.stderr
