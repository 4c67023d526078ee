"""What a strategy is, and the words that strategies are described in."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike
from pathlib import Path

from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.selection.quota import rows_for_quota

TASK_GRADIENT = "task_gradient"
"""The `definition` of files that hold squared gradients of a task (`loki.selection.task_gradients`)."""


class Scope(StrEnum):
    """The rows that are ranked together, and that the quota is a percentage of."""

    LAYER = "layer"
    MODEL = "model"


class By(StrEnum):
    """What a strategy that goes by scores takes of each: the score with its sign, or its absolute value."""

    SIGNED = "signed"
    ABSOLUTE = "absolute"


class Input(StrEnum):
    """What a strategy reads, as the command line calls it."""

    SCORES = "SCORES"
    MODEL = "--model"
    MOMENTS = "--moments"
    TASK = "--task"


@dataclass(frozen=True)
class Inputs:
    """What rows are selected from; a strategy says which of these it needs.

    Attributes:
        scores: scores file, of this or of the published project.
        model: local directory or hub id of the model.
        moments: second moments of the inputs of `down_proj`, as `loki moments` measures them.
        task: squared gradients of a task, see `loki.selection.task_gradients`.
    """

    scores: Path | None = None
    model: str | PathLike[str] | None = None
    moments: Path | None = None
    task: Path | None = None

    def given(self) -> frozenset[Input]:
        """What is there."""
        values = (self.scores, self.model, self.moments, self.task)
        return frozenset(name for name, value in zip(Input, values, strict=True) if value is not None)


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
        inputs: what to select from.
        exclude: rows that must not be selected.
        seed: of what is drawn by chance.
    """

    rows: int
    scope: Scope
    layers: int
    hidden: int
    inputs: Inputs
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
        counting: how samples are counted, for strategies that go by scores sample by sample; `loki analyse --no-log`
            can do that without a scores file.
        choose: the positions for a request, for all others.
        needs: what it cannot do without.
        takes: what it can do with besides, if only to know the size of the model.
        definition: the only definition of scores that it makes sense for; None goes by any.
    """

    name: str
    scope: Scope
    formula: str
    source: str
    counting: Counting | None = None
    choose: Callable[[Request], Positions] | None = None
    needs: frozenset[Input] = frozenset({Input.SCORES})
    takes: frozenset[Input] = frozenset()
    definition: str | None = None

    def rows(self, quota: float, layers: int, hidden: int) -> int:
        """How many rows a quota means: of every layer, or of the model, as the scope says.

        Raises:
            LokiError: if the quota is out of range or too small to select a single row.
        """
        return rows_for_quota(quota, hidden if self.scope is Scope.LAYER else layers * hidden)

    def check_inputs(self, given: frozenset[Input], *, strict: bool = False) -> None:
        """Check that what the strategy needs is there.

        Args:
            given: what is there.
            strict: whether what it has no use for is refused.

        Raises:
            LokiError: if something is missing, or superfluous.
        """
        if missing := [name for name in Input if name in self.needs - given]:
            where = "docs/guides/strategies.md says what each selects by"
            raise LokiError(f"strategy {self.name} needs {' and '.join(missing)}: {where}")
        superfluous = [name for name in Input if name in given - self.needs - self.takes]
        if strict and superfluous:
            raise LokiError(f"strategy {self.name} has no use for {' and '.join(superfluous)}: leave it out")
        if not given & {Input.SCORES, Input.MODEL}:
            raise LokiError(
                f"strategy {self.name} needs {Input.SCORES} or {Input.MODEL}, to know how many rows there are"
            )
