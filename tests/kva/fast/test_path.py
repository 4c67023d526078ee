from hypothesis import given
from hypothesis import strategies as st

from loki.kva.fast.path import IntegrationPath, PathRow, groups_within
from loki.kva.integration import integration_rule


def test_unperturbed_run_serves_all_layers() -> None:
    path = IntegrationPath.of(integration_rule("riemann_trapezoid", 7), 3, closed=False)
    assert len(path.rows) == 3 * 6
    assert path.real_weight == 1 / 14
    assert path.complete_layers == [2]


def test_rule_without_end_points_gets_a_row_for_the_baseline() -> None:
    rule = integration_rule("riemann_middle", 2)
    whole, closed = (IntegrationPath.of(rule, 3, closed=closed) for closed in (False, True))
    assert whole.rows[-1] == PathRow(2, 0.0, 0.0) and len(whole.rows) == 3 * 2 + 1
    assert len(closed.rows) == 3 * 3
    assert whole.real_weight == closed.real_weight == 0


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 200))
def test_groups_keep_every_row_within_the_budget(costs: list[int], budget: int) -> None:
    rows = [PathRow(index, 0.0, 0.0) for index in range(len(costs))]
    groups = groups_within(rows, lambda row: costs[row.layer], budget)
    assert [row for group in groups for row in group] == rows
    for group in groups:
        assert len(group) == 1 or sum(costs[row.layer] for row in group) <= budget
