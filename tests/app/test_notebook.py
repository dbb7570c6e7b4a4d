"""The notebook runs as it stands, and what is stored of it is small and of this version."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples/patchcore.ipynb"


def outputs(notebook):
    """All outputs, each as kind -> text."""
    found = (out for cell in notebook.cells for out in cell.get("outputs", []))
    return [out.get("data", {"text/plain": out.get("text", "")}) for out in found]


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "examples").mkdir()
    stored = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path / "examples")}}
    made = NotebookClient(nbformat.from_dict(stored), timeout=300, resources=place).execute()
    assert sum(cell.cell_type == "code" for cell in made.cells) == 10
    shown = outputs(made)
    assert sum("image/png" in out for out in shown) == 4  # ROC, fractions, patches, prediction
    assert shown[-1]["text/plain"].startswith("score ")
    assert "alarm True" in shown[-1]["text/plain"]
    table = next(out["text/plain"] for out in shown if "category" in out.get("text/plain", ""))
    assert all(word in table for word in ("gear", "plate", "0.01", "0.30"))


def test_what_is_stored_of_the_notebook_is_small_and_names_no_machine():
    stored = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < 500_000
    assert sum("image/png" in out for out in outputs(stored)) == 4
    assert "/home/" not in NOTEBOOK.read_text()
    assert "/tmp/" not in NOTEBOOK.read_text()
