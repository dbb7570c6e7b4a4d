from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def diary(tmp_path: Path) -> Callable[..., list[str]]:
    """What the fake runs noted: names (field 1), own (2) and parent's process ids (3), in order."""

    def read(what: str, field: int = 1) -> list[str]:
        path = tmp_path / "diary"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[field] for line in lines if line.startswith(what)]

    return read
