"""docs/faults.md lists what is tested, all of it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
TABLE = (TESTS.parent / "docs" / "faults.md").read_text()


def functions(folder: Path) -> set[str]:
    text = "\n".join(path.read_text() for path in folder.rglob("*.py"))
    return set(re.findall(r"^def (test_\w+)", text, re.M))


def test_the_table_names_existing_tests_and_every_fault_test_is_in_it():
    named = set(re.findall(r"`(test_\w+)`", TABLE))
    assert named <= functions(TESTS), named - functions(TESTS)
    own = functions(Path(__file__).parent) - functions_of_this_file()
    assert own <= named, own - named


def functions_of_this_file() -> set[str]:
    return set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.M))
