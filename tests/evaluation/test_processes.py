from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from src.evaluation.processes import from_all_processes

WORKER = """
    import json, sys
    import numpy as np, torch, torch.distributed as dist
    from src.evaluation.evaluator import Evaluator
    from src.evaluation.threshold import CalibrationScores, Threshold
    from src.models.base import Prediction

    rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    rng = np.random.default_rng(0)
    masks = torch.zeros(7, 8, 8, dtype=torch.bool)
    masks[3:, 2:5, 2:6] = True
    maps = torch.tensor(rng.normal(size=masks.shape), dtype=torch.float32) + masks
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    evaluator = Evaluator(8, memory_gb=1, resamples=20, limits=[0.3], seed=0)
    calibration = CalibrationScores()
    mine = torch.tensor([i % 7 for i in range(rank, 8, world)])  # as a DistributedSampler pads
    batch = {"index": mine, "label": labels[mine], "mask": masks[mine]}
    prediction = Prediction(maps[mine].amax((1, 2)), maps[mine])
    evaluator.update(batch, prediction)
    calibration.update(batch, prediction)
    threshold = Threshold(1.5, 1.5, "quantile", None, None, 1, oracle=False)
    metrics = evaluator.compute(threshold, None)
    metrics["calibration"] = calibration.result().image.tolist()
    if world > 1:
        dist.destroy_process_group()
    print(json.dumps(metrics))
"""


def run(world, folder, root):
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(WORKER),
                str(rank),
                str(world),
                folder / "store",
            ],
            stdout=subprocess.PIPE,
            cwd=root,
        )
        for rank in range(world)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.slow
def test_two_processes_compute_the_metrics_of_one(tmp_path, request):
    (alone,) = run(1, tmp_path, request.config.rootpath)
    first, second = run(2, tmp_path, request.config.rootpath)
    assert first == second == alone
    assert len(alone["calibration"]) == 7


def test_without_a_process_group_there_is_only_the_own_state():
    assert from_all_processes([1, 2]) == [[1, 2]]
