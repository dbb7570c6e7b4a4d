"""What the start of a run costs: libraries alone, then with our code, then up to the first batch.

All are new processes, in turn; seconds are the median of CPU time and of wall time.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

LIBRARIES = "import torch, pytorch_lightning, timm"
FIRST_BATCH = """
import os, src.command_line, src.composing
cfg = src.composing.compose_checked("run", ["experiment=demo", "runs_dir=" + os.environ["RUNS"]])
import src.commands.run, src.models.patchcore.module as method
method.PatchCore.training_step = lambda *_: os._exit(0)
src.commands.run.run(cfg)
"""
CODES = {
    "torch": "import torch",
    "torch, Lightning, timm": LIBRARIES,
    "the same and src.run": f"{LIBRARIES}; import src.command_line, src.commands.run",
    "the same and src.compare": f"{LIBRARIES}; import src.command_line, src.commands.compare",
    "src.run up to its first batch": FIRST_BATCH,
}


def seconds(code: str, environment: dict[str, str]) -> tuple[float, float]:
    """CPU and wall time of a new process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.perf_counter() - began


def main(repeats: int = 5) -> None:
    """Print the medians and their ratio to the libraries alone."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CODES}
    with tempfile.TemporaryDirectory() as place:
        environment = os.environ | {"DATA_DIR": f"{place}/data", "RUNS": f"{place}/runs"}
        seconds(FIRST_BATCH, environment)  # draws the images
        for _ in range(repeats):
            for name, code in CODES.items():
                times[name].append(seconds(code, environment))
    cpu, wall = (
        {name: statistics.median(pair[k] for pair in found) for name, found in times.items()}
        for k in (0, 1)
    )
    for name in CODES:
        share = cpu[name] / cpu["torch, Lightning, timm"]
        print(f"{name:32} {cpu[name]:6.2f} s CPU {wall[name]:6.2f} s wall {share:6.2f}")


if __name__ == "__main__":
    main()
