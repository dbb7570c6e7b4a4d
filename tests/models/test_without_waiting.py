"""Hot loops never wait for a device.

On torch's `meta` device tensors have no values: whatever would read one (`.item()`, `.cpu()`,
`bool()`, a mask as an index) fails there, as it would make the host wait on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from src.models.build import build_model
from tests.bench import bench_gpu

META = torch.device("meta")
RANDOM = "backbone.weights=random"
SMALL = ("experiment=demo", RANDOM, "transform.resize=64", "transform.crop=null")


METHODS = {
    "patchcore": (*SMALL,),
    "patchcore_reweighted": (*SMALL, "model.score=max", "model.reweight=paper"),
    "patchcore_foreground": (*SMALL, "model.foreground=0.1"),
    "pixel_statistics": ("model=pixel_statistics", "data=synthetic", "transform.resize=[64,64]"),
    "uflow": ("experiment=uflow_small", "data=synthetic", RANDOM, "transform.resize=[64,64]"),
    "crn": ("experiment=crn_demo",),
    "haloae": ("experiment=haloae_small", "data=synthetic", RANDOM),
}


def fitted(name: str) -> tuple[torch.nn.Module, int]:
    """A method and the side of its images in pixels."""
    torch.manual_seed(0)
    cfg = bench_gpu.composed(*METHODS[name])
    side = (
        cfg.transform.resize if isinstance(cfg.transform.resize, int) else cfg.transform.resize[0]
    )
    model = build_model(cfg, (side, side))
    if name.startswith("patchcore"):
        width = model.patches(torch.zeros(1, 3, side, side))[0].shape[3]
        model.memory.bank.fill(torch.randn(100, width), torch.zeros(100, 3))
    model.own_mask = name == "uflow"
    return model.eval(), side


def batch(images: int, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    return {"image": torch.empty(images, 3, *size, device=META), "index": torch.arange(images)}


def patchcore() -> torch.nn.Module:
    model = build_model(bench_gpu.composed(*SMALL), (64, 64))
    width = model.patches(torch.zeros(1, 3, 64, 64))[0].shape[3]
    model.memory.bank.fill(torch.randn(100, width), torch.zeros(100, 3))
    return model.to(META).eval()


def test_patchcore_collects_patches_and_scores_images_without_waiting():
    model = patchcore()
    found = model(batch(2, (64, 64))["image"])
    assert found.score.device == found.anomaly_map.device == META
    model.memory.begin(4)
    for number in range(2):
        model.training_step(batch(2, (64, 64)), number)
    with pytest.raises((NotImplementedError, RuntimeError)):
        model.memory.finish()  # the selection does wait: this test can fail


def test_steps_of_uflow_and_crn_do_not_wait():
    uflow = ("experiment=uflow_small", "data=synthetic", RANDOM, "model.cache.place=off")
    for words, side in (((*uflow, "transform.resize=[64,64]"), 64), (("experiment=crn_demo",), 32)):
        model = build_model(bench_gpu.composed(*words), (side, side)).to(META).train()
        model.training_step(batch(2, (side, side)), 0).backward()


def test_haloae_draws_its_views_without_waiting():
    words = ("experiment=haloae_small", "data=synthetic", RANDOM)
    model = build_model(bench_gpu.composed(*words), (112, 112)).to(META)
    shown = model.draw_views(batch(2, (112, 112))["image"], torch.Generator())
    assert model.features(shown).device == META


class NothingSent(TorchDispatchMode):
    """Fails where a value is made on the CPU and sent, which a GPU makes the host wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name, quick = func.name().removeprefix("aten::"), (kwargs or {}).get("non_blocking")
        sends = name.startswith(("_to_copy", "to.", "copy_")) and not quick
        if name.startswith("lift_fresh") or (sends and args[0].device != found.device):
            assert found.device != META, f"{func} sends {tuple(found.shape)}"
        return found


@pytest.mark.parametrize("name", METHODS)
def test_no_method_sends_anything_while_it_scores(name):
    model, side = fitted(name)
    image = torch.empty(2, 3, side, side, device=META)
    model.to(META)
    with torch.inference_mode():
        model.traced(image)  # matrices of the maps go there with the first image
        with NothingSent():
            model.traced(image)
        for wrong in (lambda: torch.zeros(2).to(META), lambda: image.new_tensor([1.0])):
            with NothingSent(), pytest.raises(AssertionError, match="sends"):
                wrong()


def test_only_images_go_to_the_device():
    given = batch(2, (8, 8)) | {"image": torch.zeros(2, 3, 8, 8), "mask": torch.zeros(2, 1, 8, 8)}
    moved = patchcore().transfer_batch_to_device(given, META, 0)
    assert {name: value.device.type for name, value in moved.items()} == {
        "image": "meta", "index": "cpu", "mask": "cpu",
    }  # fmt: skip


def test_without_a_card_the_bench_says_so_and_leaves_the_page_alone(capsys, monkeypatch):
    before = bench_gpu.PAGE.read_text()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench_gpu.main([])
    assert "no GPU" in capsys.readouterr().out
    assert bench_gpu.PAGE.read_text() == before


def test_the_tables_are_put_where_the_page_wants_them(tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text(bench_gpu.PAGE.read_text())
    for text in ("| one |", "| two |"):
        bench_gpu.write_page(text, page)
    assert "| two |" in page.read_text()
    assert "| one |" not in page.read_text()
    assert page.read_text().startswith("# On a GPU")


def test_the_bound_is_the_slower_of_arithmetic_and_memory():
    peak = bench_gpu.Peak(float32=1e12, tf32=2e12, bfloat16=4e12, copy=1e11)
    row = bench_gpu.Row("work", 0.02, flop=1e10, bytes=1e8, syncs=3)
    assert "10.00 (arithmetic) | 0.50 | 3 |" in row.shown(peak)
    assert "2.50 (arithmetic) | 0.12" in row._replace(kind="bfloat16").shown(peak)
    assert "20.00 (memory) | 1.00" in row._replace(bytes=2e9).shown(peak)


@pytest.mark.slow
def test_the_bench_runs_to_its_end_on_a_cpu(capsys):
    before = bench_gpu.PAGE.read_text()
    bench_gpu.main(["--device", "cpu", "--quick"])
    said = capsys.readouterr().out
    for work in ("features", "coreset", "search", "U-Flow", "CRN", "HaloAE", "torch.compile, 16"):
        assert f"| {work}" in said
    assert bench_gpu.PAGE.read_text() == before


@pytest.mark.parametrize(("given", "asked"), [(1, 1), (3, 4), (8, 8), (9, 16)])
def test_a_batch_of_any_size_asks_a_device_for_few_sizes(given, asked):
    model = patchcore()
    network, asked_for = model.backbone[0].network, []
    network.register_forward_pre_hook(lambda _, images: asked_for.append(len(images[0])))
    found = model(torch.empty(given, 3, 64, 64, device=META))
    assert asked_for == [asked]
    assert len(found.score) == len(found.anomaly_map) == given
