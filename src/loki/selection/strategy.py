"""What a strategy is, and the words that strategies are described in."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from loki.artefacts.positions import Positions
from loki.selection.quota import rows_for_quota


class Scope(StrEnum):
    """The rows that are ranked together, and that the quota is a percentage of."""

    LAYER = "layer"
    MODEL = "model"


class By(StrEnum):
    """What a strategy that goes by scores takes of each: the score with its sign, or its absolute value."""

    SIGNED = "signed"
    ABSOLUTE = "absolute"


@dataclass(frozen=True)
class Counting:
    """How a strategy that sees one sample at a time orders rows; see `loki.selection.accumulators.RowCounter`.

    Attributes:
        votes: every sample votes for its first rows, and the mean score decides between equal numbers of votes; else
            the mean score alone decides.
        highest: the highest scores come first instead of the lowest.
    """

    votes: bool = True
    highest: bool = False


@dataclass(frozen=True)
class Request:
    """What a strategy that does not count samples is asked for.

    Attributes:
        rows: how many rows, of every layer or of the model.
        scope: of which of the two, and which rows are ranked together.
        layers: number of layers L.
        hidden: number of rows D per layer.
        exclude: rows that must not be selected.
        seed: of what is drawn by chance.
    """

    rows: int
    scope: Scope
    layers: int
    hidden: int
    exclude: Positions | None = None
    seed: int = 0


@dataclass(frozen=True)
class Strategy:
    """A way to select rows.

    Attributes:
        name: what `--strategy` calls it.
        scope: the quota is a percentage of the rows of every layer, or of all rows of the model.
        formula: which rows it takes, in one sentence; D is the number of rows per layer, L of layers, q the quota.
        source: who selects rows like this.
        counting: how samples are counted, for strategies that go by scores sample by sample; they need no scores file.
        choose: the positions for a request, for all others.
    """

    name: str
    scope: Scope
    formula: str
    source: str
    counting: Counting | None = None
    choose: Callable[[Request], Positions] | None = None

    def rows(self, quota: float, layers: int, hidden: int) -> int:
        """How many rows a quota means: of every layer, or of the model, as the scope says.

        Raises:
            LokiError: if the quota is out of range or too small to select a single row.
        """
        return rows_for_quota(quota, hidden if self.scope is Scope.LAYER else layers * hidden)
