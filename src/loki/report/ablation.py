"""Tables of an ablation."""

import math

from loki.evaluation.ablation import ORDERS, RANDOM, Ablation
from loki.report.table import ResultTable


def ablation_tables(ablation: Ablation) -> list[ResultTable]:
    """Loss (with perplexity) by order and quota, and the same of every task's score."""
    quotas = ablation.quotas()
    header = ["rows set to zero in every layer", *(f"{quota:g}%" for quota in quotas)]
    base = _loss(ablation.base_loss)
    tables = [ResultTable(f"Loss in nats per token (perplexity); whole model: {base}", header, _rows(ablation, None))]
    for task, score in ablation.base_scores.items():
        tables.append(ResultTable(f"{task}; whole model: {score:.3f}", header, _rows(ablation, task)))
    return tables


def _rows(ablation: Ablation, task: str | None) -> list[list[str]]:
    rows = []
    seeds = list(dict.fromkeys(point.seed for point in ablation.points if point.order == RANDOM))
    for order, seed in [*((order, None) for order in ORDERS), *((RANDOM, seed) for seed in seeds)]:
        found = {point.quota: point for point in ablation.points if (point.order, point.seed) == (order, seed)}
        cells = [
            _loss(found[quota].loss) if task is None else f"{found[quota].scores[task]:.3f}"
            for quota in ablation.quotas()
        ]
        rows.append([order if seed is None else f"{order}, seed {seed}", *cells])
    return rows


def _loss(loss: float) -> str:
    return f"{loss:.3f} ({math.exp(loss):,.1f})" if loss < 20 else f"{loss:.3f}"
