"""The entry to attribution: an engine for a model."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.kva.attributor import Attribution, Attributor, NotExactError, NotExactWarning
from loki.kva.captum_engine import CaptumAttributor
from loki.kva.experts import ExpertsAttributor
from loki.kva.fast.engine import FastAttributor
from loki.kva.fast.from_cache import FromCacheAttributor
from loki.kva.sensitivity import SensitivityAttributor
from loki.kva.settings import AttributionSettings, Definition, Engine


def make_attributor(
    model: PreTrainedModel, settings: AttributionSettings, *, memory_budget: int | None = None
) -> Attributor:
    """The engine that `settings.definition` and `settings.engine` ask for; use it in a `with` block.

    Args:
        model: a causal language model.
        settings: what is attributed, and how.
        memory_budget: bytes that the fast engine may use beyond the model; None means what is free now.

    Raises:
        LokiError: if the model's MLP outputs cannot be found.
    """
    if settings.definition is Definition.SENSITIVITY:
        return SensitivityAttributor(model, settings, memory_budget)
    if settings.per_expert:
        engine = FastAttributor if settings.engine is Engine.FAST else AutoAttributor
        return ExpertsAttributor(model, settings, engine(model, settings, memory_budget))
    if settings.engine is Engine.CAPTUM:
        return CaptumAttributor(model, settings)
    if settings.engine is Engine.FAST:
        return FastAttributor(model, settings, memory_budget)
    return AutoAttributor(model, settings, memory_budget)


class AutoAttributor:
    """The fast engine; for a model, or a batch, that it finds itself not exact on, another one.

    That is the model's own cache under the definition `paper`, and Captum where that is not exact either.

    Which engine serves a batch depends on the model and the batch alone, not on what came before. Captum's scores are
    not split among experts: where they are to be, it is refused.

    Args:
        model: a causal language model.
        settings: what is attributed; the field `engine` is not looked at.
        memory_budget: bytes that the fast engine may use beyond the model; None means what is free now.
    """

    def __init__(self, model: PreTrainedModel, settings: AttributionSettings, memory_budget: int | None = None) -> None:
        self._fast = FastAttributor(model, settings, memory_budget)
        own_cache = settings.definition is Definition.PAPER
        self._from_cache = FromCacheAttributor(model, settings, memory_budget) if own_cache else None
        self._reference = CaptumAttributor(model, settings)
        self._per_expert = settings.per_expert
        self._entered = ExitStack()
        self._examined = False
        self._refusal: NotExactError | None = None
        self._warned = False

    def __enter__(self) -> Self:
        self._entered.enter_context(self._fast)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close()

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        """Attribute prompts; see `Attributor.attribute`. Warns the first time that it turns to Captum."""
        if not self._examined:
            self._refusal, self._examined = self._examine(), True
        error, subject = self._refusal, "this model"
        if error is None:
            try:
                return self._fast.attribute(batch, targets)
            except NotExactError as refusal:
                error, subject = refusal, "one of the batches"
        if self._from_cache is not None:
            try:
                with self._from_cache:
                    return self._from_cache.attribute(batch, targets)
            except NotExactError as refusal:
                error = NotExactError(f"{error.reason}; {refusal.reason}")
        if self._per_expert:
            raise LokiError(
                f"there are no scores per expert here, as only Captum computes {subject} ({error.reason}): leave out "
                "--per-expert, or choose another --definition"
            ) from error
        self._warn(error, subject)
        with self._reference:
            return self._reference.attribute(batch, targets)

    def _examine(self) -> NotExactError | None:
        """Why the fast engine refuses the model; None if it does not."""
        try:
            self._fast.examine()
        except NotExactError as error:
            return error
        return None

    def _warn(self, error: NotExactError, subject: str) -> None:
        if not self._warned:
            text = (
                f"the fast engine is not exact on {subject} ({error.reason}): going on there with Captum, which is slow"
            )
            warnings.warn(text, NotExactWarning, stacklevel=4)
        self._warned = True
