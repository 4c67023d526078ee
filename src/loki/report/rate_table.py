"""The learning rates that were tried, as a table."""

from loki.implanting.training.rate_search import RateSearch
from loki.report.table import ResultTable


def rate_table(search: RateSearch) -> ResultTable:
    """Loss, held-out loss and damage of every rate after its last step; the chosen one is marked."""
    last = {trial.learning_rate: trial for trial in search.trials}
    rows = [
        [
            f"{rate:.2g}{' (chosen)' if rate == search.learning_rate else ''}",
            str(trial.steps),
            f"{trial.loss:.3f}",
            "-" if trial.held_out_loss is None else f"{trial.held_out_loss:.3f}",
            "-" if trial.damage is None else f"{trial.damage:.3g}",
        ]
        for rate, trial in sorted(last.items())
    ]
    header = ["learning rate", "steps", f"loss ({search.loss:.3f} before)", "held-out loss", "KL per token"]
    return ResultTable("Learning rates", header, rows)
