from src.commands.robustness import measure_robustness
from tests.conftest import compose_app


def test_a_run_is_measured_under_changes_and_with_a_defect_among_its_training_images(
    finished_run, tmp_path, drawn_data, monkeypatch
):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    words = (
        "changes.brightness=[0.5]",
        "changes.rotation=[3]",
        "changes.blur=[]",
        "changes.jpeg=[]",
    )
    rows = measure_robustness(
        compose_app("robustness", f"run={finished_run}", f"out={tmp_path}", *words)
    )
    assert [row["change"] for row in rows] == ["none", "brightness", "rotation", "contamination"]
    assert rows[-1]["images"] == rows[0]["images"] - 1
    assert all(0 <= row["false_alarm_rate"] <= 1 for row in rows)
    assert (tmp_path / "robustness.csv").is_file() and (tmp_path / "robustness.png").is_file()
