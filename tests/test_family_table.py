"""The page of families says what works, no more and no less."""

from pathlib import Path

import pytest

from tests.family_table import PAGE, SAMPLE, families, lines


def written() -> list[str]:
    return [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]


def test_every_family_that_tests_know_has_a_line() -> None:
    named = {line.split("`")[1] for line in written()}
    assert named >= set(families())  # those of this release of Transformers
    assert named > set(SAMPLE)


@pytest.mark.slow
def test_lines_are_what_the_runs_give(tmp_path: Path) -> None:
    """`python -m tests.family_table` writes the page anew."""
    assert set(lines(list(SAMPLE), tmp_path)) <= set(written())
