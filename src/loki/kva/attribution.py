"""The entry to attribution: an engine for a model."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from transformers import PreTrainedModel

from loki.kva.attributor import Attribution, Attributor
from loki.kva.engine import FastAttributor
from loki.kva.exactness import NotExactError
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
    if settings.engine == "captum":
        return CaptumAttributor(model, settings)
    if settings.engine == "fast":
        return FastAttributor(model, settings, memory_budget)
    return AutoAttributor(model, settings, memory_budget)


class AutoAttributor:
    """The fast engine, and Captum from the first prompt on which the fast engine finds itself not exact.

    Args:
        model: a causal language model.
        settings: what is attributed; the field `engine` is not looked at.
        memory_budget: bytes that the fast engine may use beyond the model; None means what is free now.
    """

    def __init__(self, model: PreTrainedModel, settings: AttributionSettings, memory_budget: int | None = None) -> None:
        self._engine: Attributor = FastAttributor(model, settings, memory_budget)
        self._reference = CaptumAttributor(model, settings)
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        self._entered.enter_context(self._engine)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close()

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        """Attribute prompts; see `Attributor.attribute`. Warns once when it turns to Captum."""
        try:
            return self._engine.attribute(batch, targets)
        except NotExactError as error:
            warnings.warn(f"{error}; going on with Captum, which is slow", stacklevel=2)
            self._engine = self._entered.enter_context(self._reference)
            return self._engine.attribute(batch, targets)
