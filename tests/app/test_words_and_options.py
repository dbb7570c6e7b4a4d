"""What the words of a command line come to, through the real entry functions."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from types import SimpleNamespace

import pytest

ODD_NAMES = [
    "Prüfung", "写真", "a=b", "line (1)", "a&b", "#2", "[7]", "a b", "a,b", "it's", 'x"', '"',
    "$HOME", "${oc.env:HOME}", "a\\${b}", "\\\\server\\x", "C:\\dir\\", "a'b\\", "{x}", "a:b",
    "true", "1e5", "0", "%s", "*", "~x", "choice(a)", "a\\'b", "'a' and 'b'", "\udcfc.png",
]  # fmt: skip


@pytest.fixture
def start(monkeypatch, tmp_path, capsys):
    """start("run", *words) -> (exit code, configs the program was called with, what it said)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    homes = {"run": ("src.commands.run", "run"),
             "predict": ("src.commands.predict", "predict_images"),
             "sweep": ("src.commands.sweep", "run_sweep"),
             "compare": ("src.commands.compare", "compare_runs")}  # fmt: skip

    def start(program, *words):
        seen = []
        module, function = homes[program]
        fake = SimpleNamespace(**{function: lambda cfg: seen.append(cfg.copy()) and None})
        monkeypatch.setitem(sys.modules, module, fake)  # nothing is run, so torch is not loaded
        monkeypatch.setattr(sys, "argv", [f"src.{program}", *words])
        with pytest.raises(SystemExit) as left:
            runpy.run_module(f"src.{program}", run_name="__main__")
        return left.value.code, seen, capsys.readouterr().err

    return start


def folder(start, *words):
    code, [cfg], said = start("run", "data=folder", *words)
    assert code == 0, said
    return cfg.data


def batches(items, count):
    """Groups of `count` items, the last one filled up from the start."""
    return [(items + items)[i : i + count] for i in range(0, len(items), count)]


# --- paths and names ---------------------------------------------------------------------------


def test_any_name_is_a_path_as_the_shell_gives_it(start):
    keys = ("normal_dir", "mask_dir", "abnormal_dir", "normal_test_dir", "root")
    for names in batches(ODD_NAMES, len(keys)):
        asked = dict(zip(keys, names, strict=True))
        data = folder(start, *(f"data.{key}={name}" for key, name in asked.items()))
        assert {key: data[key] for key in keys} == asked
        assert data.index.normal_dir == asked["normal_dir"], "what refers to it is read alike"


def test_home_is_meant_by_a_tilde_and_null_is_no_path(start, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    data = folder(start, "data.root=~/my photos", "data.mask_dir=null", "data.abnormal_dir=[~/a,b]")
    assert data.root == "/home/me/my photos"
    assert data.mask_dir is None
    assert list(data.abnormal_dir) == ["/home/me/a", "b"]


def test_lists_of_paths_hold_odd_names_and_an_existing_path_is_no_list(start, tmp_path):
    words = ("data.root=x", "data.abnormal_dir=[Prüfung (1),it's,'a,b',a=b]")
    assert list(folder(start, *words).abnormal_dir) == ["Prüfung (1)", "it's", "a,b", "a=b"]
    (tmp_path / "x" / "[7]").mkdir(parents=True)
    assert folder(start, "data.root=x", "data.abnormal_dir=[7]").abnormal_dir == "[7]"
    assert list(folder(start, "data.root=y", "data.abnormal_dir=[7]").abnormal_dir) == ["7"]


def test_values_in_quotes_of_hydra_stay_what_they_were(start):
    data = folder(start, "data.root='my photos'", 'data.normal_dir="it\'s (1)"')
    assert (data.root, data.normal_dir) == ("my photos", "it's (1)")


@pytest.mark.parametrize(
    "name", ["0", "1", "2024", "1e5", "true", "null", "01", "Schraube ü", "a(b"]
)
def test_a_category_is_text_whatever_it_looks_like(start, name):
    code, [cfg], said = start("run", f"data.category={name}")
    assert (code, cfg.data.category) == (0, name), said


def test_a_multirun_takes_odd_names_and_commas_between_them(start, tmp_path):
    (tmp_path / "c,d").mkdir()
    words = ("data=folder", "data.category=0,true,a b", "runs_dir=x")
    code, seen, said = start("run", "-m", "data.root=Prüfung (1),a=b", *words)
    assert code == 0, said
    assert [cfg.data.root for cfg in seen[::3]] == ["Prüfung (1)", "a=b"]
    assert [cfg.data.category for cfg in seen[:3]] == ["0", "true", "a b"]
    code, seen, said = start("run", "-m", "data.root=c,d", "data=folder", "seed=0,1", "runs_dir=x")
    assert [(cfg.data.root, cfg.seed) for cfg in seen] == [("c,d", 0), ("c,d", 1)], said


def test_predict_compare_and_sweep_take_any_path_too(start, tmp_path, monkeypatch):
    for a, b, c in batches(ODD_NAMES, 3):
        code, [cfg], said = start("predict", f"run=r/{a}", f"images=*/{b}", f"out=o/{c}")
        assert (code, cfg.run, cfg.images, cfg.out) == (0, f"r/{a}", f"*/{b}", f"o/{c}"), said
    code, [cfg], said = start("compare", "run_a=a (1)", "run_b=[b]")
    assert (cfg.run_a, cfg.run_b) == ("a (1)", "[b]"), said
    (tmp_path / "a=b (1).yaml").touch()
    from src.sweep import name_the_file

    code, [cfg], said = start("sweep", *name_the_file(["a=b (1).yaml", "count=2"]))
    assert (cfg.file, cfg.count) == ("a=b (1).yaml", 2), said
    assert name_the_file(["count=2"]) == ["count=2"]


# --- several values without -m -----------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [("seed=0,1",), ("data.category=bottle,grid",), ("model=uflow,patchcore",),
     ("data.root=my photos", "data.category=0,1", "seed=range(0,2)"),
     ("model=uflow", "model.optimizer.lr=1e-3,1e-4")],
)  # fmt: skip
def test_several_values_without_m_show_the_command_that_works(start, words):
    code, seen, said = start("run", *words)
    assert (code, seen) == (2, [])
    command = shlex.split(re.search(r"do:\s+add -m: (.*)", said)[1])
    assert command[:4] == ["python", "-m", "src.run", "-m"]
    code, seen, said = start("run", *command[3:], "runs_dir=x")
    assert (code, len(seen) > 1) == (0, True), said


def test_the_key_comes_first_when_it_is_wrong_too(start):
    code, _, said = start("run", "category=bottle,grid")
    assert code == 2
    assert "'data.category'" in said


# --- booleans ----------------------------------------------------------------------------------


def test_all_spellings_of_a_boolean_count_everywhere(start):
    for yes, no in [("yes", "no"), ("on", "off"), ("1", "0"), ("TRUE", "False"), ("'true'", "NO")]:
        code, [cfg], said = start(
            "run", f"force={no}", f"report.enabled={no}", f"data.download={yes}",
            f"transform.antialias={no}", f"model.squared={yes}",
        )  # fmt: skip
        assert code == 0, said
        found = (cfg.force, cfg.report.enabled, cfg.data.prepare.download, cfg.transform.antialias)
        assert found == (False, False, True, False)
        assert cfg.model.squared is True


@pytest.mark.parametrize("text", ["maybe", "nope", "2", "null", "[true]", "''"])
def test_other_text_is_no_boolean(start, text):
    code, seen, said = start("run", f"force={text}")
    assert (code, seen) == (2, [])
    assert "force must be true or false" in said


def test_debug_in_any_spelling_shows_the_stack_trace(start):
    from src.errors import ConfigError

    with pytest.raises(ConfigError):
        start("run", "debug=on", "seed=-1")


# --- kinds and ranges --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("data.batch_size=abc", "a whole number of at least 1"),
        ("data.batch_size=0", "a whole number of at least 1"),
        ("data.batch_size=2.5", "a whole number"),
        ("data.batch_size=true", "a whole number"),
        ("data.batch_size=null", "a whole number"),
        ("seed=-1", "from 0"),
        ("seed=first", "from 0"),
        ("trainer.max_steps=1e4", "a whole number"),
        ("data.shots=-3", "at least 1"),
        ("model.coreset.ratio=10%", "above 0 and not above 1"),
        ("model.coreset.ratio=10", "above 0 and not above 1"),
        ("calibration.fraction=20", "at least 0 and below 1"),
        ("threshold.alpha=5%", "above 0"),
        ("hardware.precision=8", "32-true"),
        ("hardware.precision=16", "16-mixed"),
        ("hardware.devices=0", "but 0"),
        ("hardware.accelerator=gpuu", "auto, cpu, gpu"),
        ("data.root=null", "a path"),
        ("data.root=", "a path"),
        ("transform.crop=big", "[height,width]"),
        ("transform.resize=[1,2,3]", "[height,width]"),
        ("evaluation.aupro_limits=0.3", "a list"),
        ("model.stages=[a,b]", "each a number"),
        ("model.sigma=wide", "a number"),
        ("model.coreset=0.1", "model.coreset.ratio"),
        ("report=false", "report.enabled"),
        ("protocol=honst", "honest, paper"),
        ("model.embedding=3", "one of official, concat"),
    ],
)
def test_a_wrong_kind_is_refused_and_the_advice_works(start, word, allowed):
    code, seen, said = start("run", word)
    assert (code, seen) == (2, [])
    key = word.partition("=")[0]
    assert said.startswith(f"Error: {key} must be ")
    assert allowed in said
    assert f"found: {key}=" in said
    assert "report this bug" not in said
    advice = said.rpartition("do:")[2].strip()
    if advice.startswith("leave"):
        return  # no single value is near
    code, seen, said = start("run", *shlex.split(advice))
    assert (code, len(seen)) == (0, 1), said


def test_the_nearest_value_is_the_advice(start):
    for word, better in [
        ("seed=-1", "seed=0"), ("data.batch_size=0", "data.batch_size=1"),
        ("model.coreset.ratio=10%", "model.coreset.ratio=0.1"),
        ("calibration.fraction=20", "calibration.fraction=0.2"),
        ("hardware.precision=16", "hardware.precision=16-mixed"),
        ("trainer.max_steps=1e4", "trainer.max_steps=10000"),
    ]:  # fmt: skip
        assert start("run", word)[2].rpartition("do:")[2].strip() == better


@pytest.mark.parametrize(
    "words",
    [
        ("transform.crop=null", "transform.resize=[64,32]", "model.sigma=3"),
        ("model=haloae", "model.cutpaste.jitter=null", "data.samples_per_epoch=null"),
        ("model=uflow", "model.stages=[1,2]", "model.cache.limit_gb=0.5", "trainer.max_epochs=0"),
        ("hardware.devices=auto", "hardware.num_workers=auto", "trainer.val_check_interval=0.5"),
        ("model=crn", "model.weights.feedback=1", "model.optimizer.lr=1e-3"),
        ("model.coreset.stop_radius=1", "model.coreset.ratio=null"),
        ("logger=wandb", "logger.wandb.project=2024", "logger.wandb.tags=[a,b]"),
        ("backbone.weights=a (1).pth", "backbone.layers=[layer1,layer2]"),
    ],
)
def test_values_that_fit_are_let_through(start, words):
    code, seen, said = start("run", *words)
    assert (code, len(seen)) == (0, 1), said


def test_a_needed_option_is_named(start):
    assert "data.root is needed" in start("run", "data=folder")[2]
    assert "images is needed" in start("predict", "run=x")[2]


def test_every_config_of_the_repository_passes_its_own_check():
    from src.composing import CONF, compose_checked

    groups = ("experiment", "model", "data", "hardware", "threshold", "logger")
    files = {group: sorted((CONF / group).glob("*.yaml")) for group in groups}
    for turn in range(max(map(len, files.values()))):
        chosen = {group: found[turn % len(found)].stem for group, found in files.items()}
        compose_checked("run", [f"experiment={chosen.pop('experiment')}"])
        words = [f"{group}={name}" for group, name in chosen.items()]
        compose_checked("run", [*words, "data.root=x"])


@pytest.mark.parametrize("model", ["crn", "haloae", "patchcore_ensemble", "uflow"])
def test_every_method_passes_the_gate_with_its_own_defaults(model):
    from src.composing import compose_checked

    assert compose_checked("run", [f"model={model}"]).model.name == model
