import io

import pytest
from rich.console import Console

from loki.errors import LokiError
from loki.report.table import ResultTable

TABLE = ResultTable("Results", ["family", "before", "after"], [["old", "1.000", "0.990"], ["new", "0.000", "1.000"]])


def test_markdown() -> None:
    assert TABLE.markdown() == (
        "**Results**\n\n"
        "| family | before | after |\n| --- | ---: | ---: |\n| old | 1.000 | 0.990 |\n| new | 0.000 | 1.000 |\n"
    )


def test_rich_shows_every_cell() -> None:
    screen = io.StringIO()
    Console(file=screen, width=80).print(TABLE.rich())
    shown = screen.getvalue().split()
    assert {"Results", *TABLE.header, *TABLE.rows[0], *TABLE.rows[1]} <= set(shown)


def test_row_of_another_length() -> None:
    with pytest.raises(LokiError, match="header"):
        ResultTable("Results", ["a", "b"], [["1"]])
