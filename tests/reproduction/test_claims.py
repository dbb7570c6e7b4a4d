from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from src.reproduction.claims import Claim, ClaimBoard, Heartbeat

REPOSITORY = Path(__file__).resolve().parents[2]


def foreign(board: ClaimBoard, key: str, age_s: float) -> None:
    """A claim by another machine, last renewed `age_s` ago."""
    path = board.folder / f"{key}.json"
    path.write_text(json.dumps({"token": "x", "kernel": "elsewhere", "processes": [[1, "1"]]}))
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_a_claim_excludes_others_until_released(tmp_path):
    board = ClaimBoard(tmp_path, lease_s=30)
    claim = board.take("a")
    assert claim is not None
    assert ClaimBoard(tmp_path, lease_s=30).take("a") is None
    board.release(claim)
    assert board.take("a") is not None


def test_a_claim_of_another_machine_is_respected_until_its_lease_ends(tmp_path):
    board = ClaimBoard(tmp_path, lease_s=10)
    foreign(board, "fresh", age_s=1)
    foreign(board, "stale", age_s=11)
    assert board.take("fresh") is None
    assert board.take("stale") is not None


def test_a_claim_of_a_dead_process_of_this_machine_is_free_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from src.reproduction.claims import ClaimBoard;"
        "ClaimBoard(Path(sys.argv[1]), 3600).take('a')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, check=True)
    assert (tmp_path / "a.json").exists()
    assert ClaimBoard(tmp_path, lease_s=3600).take("a") is not None


def test_a_claim_lives_as_long_as_any_watched_process(tmp_path):
    board = ClaimBoard(tmp_path, lease_s=3600)
    claim = board.take("a")
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        board.watch(claim, [sleeper.pid])
        card = json.loads((tmp_path / "a.json").read_text())
        card["processes"] = card["processes"][1:]  # as if this process had died
        (tmp_path / "a.json").write_text(json.dumps(card))
        assert board.is_held("a")
    finally:
        sleeper.kill()
        sleeper.wait()
    assert not board.is_held("a")


def test_a_reused_process_id_does_not_keep_a_claim(tmp_path):
    board = ClaimBoard(tmp_path, lease_s=3600)
    board.take("a")
    card = json.loads((tmp_path / "a.json").read_text())
    card["processes"] = [[os.getpid(), "1"]]  # our id, another start time
    (tmp_path / "a.json").write_text(json.dumps(card))
    assert not board.is_held("a")


def test_renewing_keeps_a_claim_and_tells_when_it_was_lost(tmp_path):
    board = ClaimBoard(tmp_path, lease_s=10)
    claim = board.take("a")
    old = time.time() - 9
    os.utime(tmp_path / "a.json", (old, old))
    assert board.renew(claim)
    assert time.time() - (tmp_path / "a.json").stat().st_mtime < 5
    foreign(board, "a", age_s=0)
    assert not board.renew(claim)
    board.release(claim)
    assert (tmp_path / "a.json").exists()  # not ours to remove


def test_heartbeat_renews_and_reports_losses(tmp_path):
    board = ClaimBoard(tmp_path, lease_s=0.4)
    heart = Heartbeat(board)
    claim = board.take("a")
    heart.hold(claim)
    time.sleep(0.9)
    assert ClaimBoard(tmp_path, lease_s=0.4).take("a") is None  # older than two leases, yet held
    foreign(board, "a", age_s=0)
    time.sleep(0.3)
    assert heart.has_lost(claim)
    heart.stop()


def test_a_torn_claim_file_blocks_nobody(tmp_path):
    board = ClaimBoard(tmp_path, lease_s=30)
    (tmp_path / "a.json").write_text('{"token": "x", "ker')
    assert board.take("a") is not None


def test_of_many_threads_exactly_one_takes_a_claim(tmp_path):
    taken: list[Claim] = []
    boards = [ClaimBoard(tmp_path, lease_s=30) for _ in range(8)]

    def grab(board: ClaimBoard) -> None:
        claim = board.take("a")
        if claim:
            taken.append(claim)

    threads = [threading.Thread(target=grab, args=(board,)) for board in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
