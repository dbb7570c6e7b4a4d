"""Two processes that share the images build the bank of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys, torch, pytorch_lightning as pl
from torch.utils.data import DataLoader
sys.path.insert(0, {folder!r})
from stand_ins import Noise, build
torch.set_num_threads(1)
if __name__ == "__main__":
    processes, budget, out = int(sys.argv[1]), float(sys.argv[2]) or None, sys.argv[3]
    if budget:
        from src.models.patchcore import plan, streaming
        plan.WORKSPACE = streaming.WORKSPACE = 0
        streaming._SMALLEST_PART = 64
    model = build(memory_budget_gb=budget)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, devices=processes,
        strategy="ddp" if processes > 1 else "auto",
    )
    loader = DataLoader(Noise(9), 2)
    trainer.fit(model, loader)
    model.after_fit(loader)
    torch.save(model.trained_tensors(), f"{{out}}-{{trainer.global_rank}}.pt")
"""


def run(folder: Path, processes: int, budget: float = 0.0) -> list[dict[str, torch.Tensor]]:
    script = folder / "fit.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent)))
    out = folder / f"bank{processes}"
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(script), str(processes), str(budget), str(out)],
        check=True, env=environment, timeout=300, capture_output=True,
    )  # fmt: skip
    return [torch.load(f"{out}-{rank}.pt") for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_build_the_bank_of_one(tmp_path):
    (alone,) = run(tmp_path, 1)
    first, second = run(tmp_path, 2)
    assert set(alone) == set(first) == set(second)
    for key, value in alone.items():
        # Batches of another size round the features differently.
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-4)
        assert torch.equal(first[key], second[key])


@pytest.mark.slow
def test_two_streaming_processes_agree_on_a_bank_of_the_planned_size(tmp_path):
    first, second = run(tmp_path, 2, budget=0.00009)
    assert len(first["bank.rows"]) == int(0.2 * 9 * 96)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert len(first["held_out.image"]) == 9
    assert len(torch.unique(first["bank.origin"], dim=0)) == len(first["bank.origin"])
