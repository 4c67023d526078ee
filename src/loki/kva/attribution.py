"""The entry to attribution: an engine for a model."""

from transformers import PreTrainedModel

from loki.kva.attributor import Attribution, Attributor
from loki.kva.reference import CaptumAttributor
from loki.kva.settings import AttributionSettings

__all__ = ["Attribution", "Attributor", "make_attributor"]


def make_attributor(
    model: PreTrainedModel, settings: AttributionSettings, *, memory_budget: int | None = None
) -> Attributor:
    """The attribution engine that `settings.engine` asks for; use it in a `with` block.

    Args:
        model: a causal language model.
        settings: what is attributed, and how.
        memory_budget: bytes that the fast engine may use beyond the model; None means what is free now.

    Raises:
        LokiError: if the model's MLP outputs cannot be found.
    """
    return CaptumAttributor(model, settings)
