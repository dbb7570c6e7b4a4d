"""What a sweep leaves behind: a table of its trials and Optuna's pictures of them."""

from __future__ import annotations

from pathlib import Path

from matplotlib import pyplot
from optuna import Study
from optuna.trial import TrialState
from optuna.visualization import matplotlib as pictures

from src.files import atomic
from src.sweeping.definition import Sweep

RANKED = 4  # finished trials; ours: with fewer, any ranking of parameters is noise
SHOWN = 10  # trials on the screen; trials.csv holds all


def write_trials(study: Study, sweep: Sweep, count: int, folder: Path) -> list[Path]:
    """Print the best trials; write trials.csv, parallel.png, importances.png where they can be."""
    frame = study.trials_dataframe(("number", "state", "value", "params", "duration"))[:count]
    table = folder / "trials.csv"
    with atomic(table) as partial:
        frame.to_csv(partial, index=False)
    done = study.get_trials(False, states=(TrialState.COMPLETE,))
    if not done:
        return [table]
    ranked = frame.sort_values("value", ascending=not sweep.maximise, na_position="last")
    print(ranked[:SHOWN].to_string(index=False))
    best = study.best_trial
    words = " ".join(f"{name}={value}" for name, value in best.params.items())
    print(f"Best: trial {best.number}, {sweep.metric} {best.value:.4f} with {words}")

    varied = [n for n in sweep.space if len({str(trial.params[n]) for trial in done}) > 1]
    differ = len({trial.value for trial in done}) > 1
    paths = [table]
    for name, draw, wanted in (
        ("parallel.png", pictures.plot_parallel_coordinate, varied),
        ("importances.png", pictures.plot_param_importances, differ and len(done) >= RANKED),
    ):
        if varied and wanted:
            pyplot.sca(draw(study, params=varied))
            with atomic(folder / name) as partial:
                pyplot.savefig(partial, format="png", dpi=120, bbox_inches="tight")
            pyplot.close()
            paths.append(folder / name)
    return paths
