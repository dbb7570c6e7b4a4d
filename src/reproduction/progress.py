"""What people see while jobs run: a line a running job and a bar; plain lines in a log."""

from __future__ import annotations

import sys

from rich import progress
from rich.console import Console

DAY = 86_400.0  # seconds of jobs that the time left is estimated from


class Board:
    """Shows running jobs of `total`, some of which are finished already."""

    def __init__(self, total: int, finished: int = 0) -> None:
        console = Console(file=sys.stdout, highlight=False)
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False), progress.BarColumn(),
            progress.MofNCompleteColumn(), progress.TimeElapsedColumn(),
            progress.TextColumn("left"), progress.TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
            speed_estimate_period=DAY,
        )  # fmt: skip
        self._all = self._bars.add_task("all", total=total, completed=finished)
        self._lines: dict[str, progress.TaskID] = {}
        self.start, self.stop = self._bars.start, self._bars.stop

    def started(self, name: str, node: str) -> None:
        """A job began on a node."""
        if self._bars.disable:
            self._say(f"start  {name}  [{node}]")
        self._lines[name] = self._bars.add_task(f"{name}  [{node}]", total=None)

    def ended(self, name: str, text: str, *, finished: bool) -> None:
        """A job left its place; `finished` False: its repetition is still to come."""
        self._say(text)
        if (line := self._lines.pop(name, None)) is not None:
            self._bars.remove_task(line)
        if finished:
            self._bars.advance(self._all)

    def _say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """'7.2 s', '3:20 min', '2 h 05 min', '3 d 04 h'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min" if seconds >= 60 else f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"
