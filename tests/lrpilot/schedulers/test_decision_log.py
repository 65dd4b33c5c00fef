import csv
import math
from pathlib import Path

import pytest

from lrpilot.schedulers.decision_log import Decision, DecisionLog


def decision(step: int) -> Decision:
    return Decision(step, 0.1, 0.1 / 3, -2.5, math.nan, "plateau", "min_factor")


def test_the_newest_entries_are_kept_and_the_others_counted() -> None:
    log = DecisionLog(max_entries=3)
    for step in range(10):
        log.add(decision(step))
    assert [entry.step for entry in log] == [7, 8, 9]
    assert log.num_dropped == 7
    assert len(log) == 3
    assert log[-1].step == 9


def test_a_log_of_no_entries_still_tells_its_listeners() -> None:
    heard: list[Decision] = []
    log = DecisionLog(max_entries=0)
    log.subscribe(heard.append)
    log.add(decision(4))
    assert heard == [decision(4)]
    assert len(log) == 0


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="`max_entries` must be at least 0, got -1"):
        DecisionLog(-1)


def test_the_csv_file_reads_back_exactly(tmp_path: Path) -> None:
    log = DecisionLog()
    log.add(decision(0))
    log.add(decision(1))
    log.to_csv(tmp_path / "log.csv")
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 1]
    assert [float(row["new_lr"]) for row in rows] == [0.1 / 3] * 2
    assert rows[0]["threshold"] == "nan"
    assert rows[0]["bound_by"] == "min_factor"


def test_a_state_continues_in_another_log() -> None:
    log, other = DecisionLog(max_entries=3), DecisionLog(max_entries=2)
    for step in range(5):
        log.add(decision(step))
    other.load_state_dict(log.state_dict())
    assert [entry.step for entry in other] == [3, 4]
    assert other.num_dropped == 3
