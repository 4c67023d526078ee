"""One table of results, shown in the terminal and saved as Markdown or LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
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
        table = RichTable(title=escape(self.title), title_justify="left")
        for index, name in enumerate(self.header):
            table.add_column(escape(name), justify="right" if index else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        """A Markdown table under its title."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        lines = [f"| {' | '.join(map(_markdown, cells))} |" for cells in (self.header, rule, *self.rows)]
        return f"**{_markdown(self.title)}**\n\n" + "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A LaTeX table (`tabular`, with the rules of the package booktabs) under its title."""
        lines = [" & ".join(map(_latex, cells)) + r" \\" for cells in (self.header, *self.rows)]
        body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        columns = "l" + "r" * (len(self.header) - 1)
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{_latex(self.title)}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                *body,
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex(text: str) -> str:
    return re.sub(r"[\\~^<>|&%$#_{}]", lambda found: _LATEX[found[0]], " ".join(text.split()))


def _markdown(text: str) -> str:
    """A cell: in one line, with what would end it or be taken for HTML escaped."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
