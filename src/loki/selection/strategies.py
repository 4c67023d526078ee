"""The strategies by which rows are selected, one entry each.

Everything that depends on a strategy is read from its entry: the help of the command line, the check of names, what
can be counted without a scores file, how many rows a quota means, and the table in docs/guides/strategies.md
(`as_table`). A new strategy is a new entry, and a function if it does not count samples.
"""

from dataclasses import dataclass

from loki.artefacts.positions import Positions
from loki.errors import LokiError, require_seed
from loki.selection.strategy import By, Counting, Input, Request, Scope, Strategy

# What computes is imported when it is needed: the command line reads this module for its help.


def _random(request: Request) -> Positions:
    from loki.selection.controls import by_chance

    return by_chance(request)


def _magnitude(request: Request) -> Positions:
    from loki.selection.controls import by_magnitude

    return by_magnitude(request)


def _wanda(request: Request) -> Positions:
    from loki.selection.controls import by_wanda

    return by_wanda(request)


def _task_aware(request: Request) -> Positions:
    from loki.selection.task_aware import by_task_per_damage

    return by_task_per_damage(request)


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "layer_balanced",
            Scope.LAYER,
            "floor(q/100 D) rows of every layer that are most often among a sample's floor(q/100 D) lowest scores of "
            "the layer; equally often: the lower mean score first, then the lower index",
            "LoKI, arXiv 2505.22120, section 3.2",
            Counting(),
        ),
        Strategy(
            "layer_balanced_mean",
            Scope.LAYER,
            "floor(q/100 D) rows of every layer with the lowest mean score over all samples",
            "Fisher-weighted methods such as EWC (arXiv 1612.00796) average over samples like this",
            Counting(votes=False),
        ),
        Strategy(
            "global_lowest",
            Scope.MODEL,
            "as layer_balanced, but with the rows of all layers together: floor(q/100 L D) rows, whatever their layer",
            "control for the balance over layers",
            Counting(),
        ),
        Strategy(
            "global_highest",
            Scope.MODEL,
            "the mirror image of global_lowest: the highest scores, and the higher mean first",
            "control for the balance over layers",
            Counting(highest=True),
        ),
        Strategy(
            "random",
            Scope.LAYER,
            "floor(q/100 D) rows of every layer, drawn evenly with --seed",
            "control for the scores",
            choose=_random,
            needs=frozenset(),
            takes=frozenset({Input.SCORES, Input.MODEL}),
        ),
        Strategy(
            "magnitude",
            Scope.LAYER,
            "floor(q/100 D) rows of every layer with the smallest Euclidean norm",
            "control without any data; magnitude pruning (arXiv 1506.02626), SHiRA (arXiv 2406.13175)",
            choose=_magnitude,
            needs=frozenset({Input.MODEL}),
        ),
        Strategy(
            "wanda",
            Scope.LAYER,
            "floor(q/100 D) rows of every layer with the smallest sum over the inputs j of abs(W_ij) times the root "
            "mean square of input j",
            "control without gradients; Wanda (arXiv 2306.11695)",
            choose=_wanda,
            needs=frozenset({Input.MODEL, Input.MOMENTS}),
        ),
        Strategy(
            "task_aware",
            Scope.LAYER,
            "floor(q/100 D) rows of every layer with the highest ratio of the task's mean squared gradient of the row "
            "to its mean sensitivity: meant to learn most per damage",
            "this project; both are diagonals of Fisher information (arXiv 1503.05671)",
            choose=_task_aware,
            needs=frozenset({Input.SCORES, Input.TASK}),
            takes=frozenset({Input.MODEL}),
            definition="sensitivity",
        ),
    )
}


@dataclass(frozen=True)
class SelectionSettings:
    """How rows are selected. The defaults of every command and function stand here.

    Attributes:
        strategy: a name in `STRATEGIES`; the default is the published one.
        by: whether strategies that go by scores go by the signed score, as published, or by its absolute value.
        seed: of `random`; the others are deterministic.

    Raises:
        LokiError: for a strategy or an order that does not exist.
    """

    strategy: str = "layer_balanced"
    by: By = By.SIGNED
    seed: int = 0

    def __post_init__(self) -> None:
        find_strategy(self.strategy)
        require_seed(self)
        if self.by not in list(By):
            raise LokiError(f"by is {self.by!r}: use {' or '.join(By)}")
        object.__setattr__(self, "by", By(self.by))
        if self.by is By.ABSOLUTE and find_strategy(self.strategy).counting is None:
            raise LokiError(f"strategy {self.strategy} does not go by signed scores: leave out --by absolute")


def strategy_names(*, counting: bool = False) -> list[str]:
    """Names of all strategies, or of those alone that count sample by sample and so need no scores file."""
    return [name for name, strategy in STRATEGIES.items() if strategy.counting or not counting]


def find_strategy(name: str, *, counting: bool = False) -> Strategy:
    """The strategy of this name.

    Args:
        name: what the user asked for.
        counting: whether it has to count sample by sample.

    Raises:
        LokiError: if there is none, or it does not count.
    """
    names = strategy_names(counting=counting)
    if name not in names:
        raise LokiError(f"strategy {name!r} is not known here: choose one of {', '.join(names)}")
    return STRATEGIES[name]


def as_table() -> str:
    """All strategies as a Markdown table, as it stands in docs/guides/strategies.md."""
    quota_of = {Scope.LAYER: "every layer", Scope.MODEL: "the model"}
    rows = ["| strategy | needs | quota of | selects | source |", "| --- | --- | --- | --- | --- |"]
    for strategy in STRATEGIES.values():
        needs = ", ".join(f"`{name}`" for name in Input if name in strategy.needs)
        needs = needs or " or ".join(f"`{name}`" for name in Input if name in strategy.takes)
        if strategy.definition:
            needs += f" (`--definition {strategy.definition}`)"
        rows.append(
            f"| `{strategy.name}` | {needs} | {quota_of[strategy.scope]} | {strategy.formula} | {strategy.source} |"
        )
    return "\n".join(rows)
