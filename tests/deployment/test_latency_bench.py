"""The benchmark of one image runs, and what it times agrees with what users call."""

from __future__ import annotations

from tests.bench.bench_latency import SOME, table


def test_the_latency_bench_times_every_way(finished_run, drawn_data, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    times = table(finished_run, side=80, rounds=1)
    for name in ("PyTorch", "ONNX Runtime", "OpenVINO"):
        for way in ("1 from array", "1 from PNG", f"{SOME} from array"):
            assert times[f"{name}, {way}"].median > 0
    assert times["model"].median < times[f"PyTorch, {SOME} from array"].median
    said = capsys.readouterr().out
    assert "80 x 80 -> (64, 64)" in said
    for step in ("decode the PNG", "network", "patch vectors", "search in", "map", "decision"):
        assert step in said
