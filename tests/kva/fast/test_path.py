from hypothesis import given
from hypothesis import strategies as st

from loki.kva.fast.path import IntegrationPath, PathPoint, groups_within
from loki.kva.integration import integration_rule


def test_original_run_serves_all_layers() -> None:
    path = IntegrationPath.of(integration_rule("riemann_trapezoid", 7), 3, last_position_only=False)
    assert len(path.points) == 3 * 6
    assert path.original_weight == 1 / 14
    assert path.complete_layers == [2]


def test_rule_without_end_points_gets_a_point_for_the_baseline() -> None:
    rule = integration_rule("riemann_middle", 2)
    everywhere, last = (IntegrationPath.of(rule, 3, last_position_only=last_only) for last_only in (False, True))
    assert everywhere.points[-1] == PathPoint(2, 0.0, 0.0) and len(everywhere.points) == 3 * 2 + 1
    assert len(last.points) == 3 * 3
    assert everywhere.original_weight == last.original_weight == 0


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 200))
def test_groups_keep_every_point_within_the_budget(costs: list[int], budget: int) -> None:
    points = [PathPoint(index, 0.0, 0.0) for index in range(len(costs))]
    groups = groups_within(points, lambda point: costs[point.layer], budget)
    assert [point for group in groups for point in group] == points
    for group in groups:
        assert len(group) == 1 or sum(costs[point.layer] for point in group) <= budget
