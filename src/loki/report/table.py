"""One table of results, shown in the terminal and saved as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable

from loki.errors import LokiError


@dataclass(frozen=True)
class ResultTable:
    """Text cells under a header; the first column is left aligned, the others right.

    Attributes:
        title: what the table shows.
        header: one name per column.
        rows: the cells, as many per row as there are columns.

    Raises:
        LokiError: if a row has another number of cells than the header.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise LokiError(f"table {self.title!r}: row {list(row)} does not fit the header {list(self.header)}")

    def rich(self) -> RichTable:
        """For `rich.console.Console.print`."""
        table = RichTable(title=self.title, title_justify="left")
        for index, name in enumerate(self.header):
            table.add_column(name, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """A Markdown table under its title."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.header, rule, *self.rows)]
        return f"**{self.title}**\n\n" + "\n".join(lines) + "\n"
