"""What was tried: one JSON file a job, shared by all processes that work on the grid."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attempt:
    """One finished try of a job."""

    ended: float  # file server's clock, seconds since 1970
    seconds: float
    exit_code: int
    host: str
    log: str  # path of the log file

    @property
    def succeeded(self) -> bool:
        """Whether the run came to its end."""
        return self.exit_code == 0


class Ledger:
    """Attempts of every job in `folder`; written only by the holder of the job's claim."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def attempts(self, key: str) -> list[Attempt]:
        """Every attempt of a job, oldest first."""
        try:
            rows = json.loads((self.folder / f"{key}.json").read_text())
        except FileNotFoundError:
            return []
        return [Attempt(**row) for row in rows]

    def add(self, key: str, attempt: Attempt) -> None:
        """Append an attempt, atomically."""
        rows = [asdict(row) for row in [*self.attempts(key), attempt]]
        partial = self.folder / f"{key}.json.partial"
        partial.write_text(json.dumps(rows, indent=1) + "\n")
        partial.replace(self.folder / f"{key}.json")

    def failures(self, key: str, since: float) -> list[Attempt]:
        """Failed attempts that ended after `since`."""
        return [a for a in self.attempts(key) if not a.succeeded and a.ended >= since]

    def seconds(self, key: str) -> float | None:
        """Wall time of the last successful attempt; None: there was none."""
        done = [attempt.seconds for attempt in self.attempts(key) if attempt.succeeded]
        return done[-1] if done else None
