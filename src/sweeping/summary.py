"""The table of trials: on the screen, as CSV and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.files import write_rows, write_text
from src.reproduction.display import duration
from src.sweeping.definition import SweepDefinition
from src.sweeping.trials import Trial, best_trial

LOG_WIDTH = 160  # columns of a table that goes to a file
SHOWN = 10  # trials on the screen; the files hold all


def searched(definition: SweepDefinition) -> list[str]:
    """Names of the parameters that vary."""
    return [name for name, spec in definition.parameters.items() if _varies(spec)]


def short_names(names: Sequence[str]) -> list[str]:
    """The shortest ends of dotted names that still differ, for headings."""
    parts = [name.split(".") for name in names]
    longest = max((len(part) for part in parts), default=0)
    for depth in range(1, longest + 1):
        short = [".".join(part[-depth:]) for part in parts]
        if len(set(short)) == len(names) and not {"name", "value", "type"} & set(short):
            return short
    return list(names)


def write_tables(
    definition: SweepDefinition, trials: Sequence[Trial], folder: Path
) -> tuple[Path, Path]:
    """trials.csv in order of their numbers and trials.md, best first."""
    header = ["trial", "state", *list(definition.parameters), "metric", "seconds", "run"]
    rows = [_row(definition, trial) for trial in trials]
    table, page = folder / "trials.csv", folder / "trials.md"
    write_rows(table, [dict(zip(header, row, strict=True)) for row in rows], header)
    ranked = [_row(definition, trial) for trial in ranking(definition, trials)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in ranked]
    write_text(page, "\n".join([_headline(definition, trials), "", *lines, ""]))
    return table, page


def ranking(definition: SweepDefinition, trials: Sequence[Trial]) -> list[Trial]:
    """Finished trials best first, then the others."""
    sign = -1.0 if definition.maximise else 1.0

    def order(trial: Trial) -> tuple[bool, float, int]:
        unfinished = trial.state != "finished" or trial.metric is None
        return unfinished, 0.0 if unfinished else sign * (trial.metric or 0.0), trial.number

    return sorted(trials, key=order)


def print_summary(definition: SweepDefinition, trials: Sequence[Trial]) -> None:
    """The best trials, and the command that repeats the best one."""
    from rich.console import Console
    from rich.table import Table

    names = searched(definition)
    heads = short_names(names)
    table = Table("trial", "state", *heads, definition.metric or "metric", "time", box=None)
    for trial in ranking(definition, trials)[:SHOWN]:
        table.add_row(
            str(trial.number), trial.state, *(_cell(trial.values[name]) for name in names),
            _cell(trial.metric), duration(trial.seconds),
        )  # fmt: skip
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    console.print(table)
    console.print(_headline(definition, trials), markup=False, soft_wrap=True)


def _headline(definition: SweepDefinition, trials: Sequence[Trial]) -> str:
    states = [trial.state for trial in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    best = best_trial(list(trials), maximise=definition.maximise)
    if best is None or best.metric is None:
        return f"{len(trials)} trials ({counts})."
    values = " ".join(f"{name}={best.values[name]}" for name in searched(definition))
    return (
        f"{len(trials)} trials ({counts}). Best: trial {best.number}, "
        f"{definition.metric} {best.metric:.4f} with {values}"
    )


def _row(definition: SweepDefinition, trial: Trial) -> list[Any]:
    values = [trial.values.get(name) for name in definition.parameters]
    return [trial.number, trial.state, *values, trial.metric, trial.seconds, trial.run]


def _varies(spec: dict[str, Any]) -> bool:
    return "value" not in spec and len(spec.get("values", (0, 1))) > 1


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
