from pathlib import Path

import pytest

from loki.analysis.stability import StabilityRule, checkpoints
from loki.errors import LokiError

SAME, OTHER = [[0, 1, 2, 3]], [[0, 1, 2, 9]]


def rule_at(path: Path, threshold: float = 0.7) -> StabilityRule:
    rule = StabilityRule(threshold)
    rule.resume(path)
    return rule


def test_stops_after_two_overlaps_in_a_row(tmp_path: Path) -> None:
    rule = rule_at(tmp_path / "stability.json")
    assert [rule.observe({10.0: rows}) for rows in (SAME, SAME, SAME)] == [False, False, True]


def test_every_quota_counts(tmp_path: Path) -> None:
    rule = rule_at(tmp_path / "stability.json", threshold=0.8)
    seen = [({10.0: SAME, 20.0: rows}) for rows in (SAME, OTHER, SAME, SAME, SAME)]
    assert [rule.observe(positions) for positions in seen] == [False, False, False, False, True]
    record = rule.record([10, 20])
    assert (record["until_stable"], record["quotas"], len(record["overlaps"])) == (0.8, [10.0, 20.0], 5)


def test_an_interruption_is_not_noticed(tmp_path: Path) -> None:
    for expected in (False, False, True):
        rule = rule_at(tmp_path / "stability.json")
        assert rule.observe({10.0: SAME}) == expected
    assert rule_at(tmp_path / "stability.json").stable


def test_checkpoints_are_a_quarter_apart_and_one_is_at_the_end() -> None:
    batches = [[0] * 10 for _ in range(20)]
    ends = checkpoints(batches, range(20))
    assert ends == [7, 9, 12, 15, 19, 20]
    assert checkpoints(batches[:3], range(3)) == [3]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, float("nan")])
def test_thresholds_out_of_range(threshold: float) -> None:
    with pytest.raises(LokiError, match="--until-stable"):
        StabilityRule(threshold)
