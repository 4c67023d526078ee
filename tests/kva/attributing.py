"""One call for what most tests of the engines do."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from loki.kva import Attribution, AttributionSettings, make_attributor

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]  # longer than the tiny models' sliding windows


def attribute(
    model: PreTrainedModel,
    prompts: list[list[int]],
    targets: Sequence[int | None] | None = None,
    memory_budget: int | None = None,
    **changes: Any,
) -> list[Attribution]:
    """Attributions by the fast engine, under settings that differ from the defaults by `changes`."""
    settings = AttributionSettings(**{"engine": "fast", **changes})
    with make_attributor(model, settings, memory_budget=memory_budget) as attributor:
        return attributor.attribute(prompts, targets or [None] * len(prompts))
