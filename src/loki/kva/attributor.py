"""What every attribution engine takes, gives and raises."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from torch import Tensor
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.kva.hooks import frozen


@dataclass(frozen=True)
class Attribution:
    """The scores of one prompt.

    Attributes:
        scores: `[L, D]` float32 on the CPU; `scores[l, j]` is the attribution of row j of layer l's
            `down_proj.weight`, taken at the attributed position.
        target: token id whose probability (or logit) is attributed.
        probability: its softmax probability at the attributed position.
        completeness: how far the attributions are from F(z) - F(z0), as a fraction of it: the 2-norm over layers of
            `sum_j scores[l, j] - (F(z) - F(z0_l))`, divided by the 2-norm over layers of `F(z) - F(z0_l)`. Exact
            integration gives 0. Under the definition `paper` it runs over all layers. Under `captum` it is the last
            layer's: there the attributed position is the only one that reaches F, so that its attributions alone
            should sum to the difference. Signed scores are summed even where `scores` is absolute.
        gradients: `[L, D]` float32; the integrated gradients that the scores are `z - z0` times. None from Captum, and
            under the definition `sensitivity`.
        experts: by layer whose block ends in experts, the scores of each of them, `[E, D]` float32 on the CPU; see
            `loki.kva.experts`. None unless `per_expert` was asked for.
    """

    scores: Tensor
    target: int
    probability: float
    completeness: float
    gradients: Tensor | None = None
    experts: dict[int, Tensor] | None = None


class Attributor(Protocol):
    """An attribution engine at work on one model; a context manager that gives the model back as it was."""

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        """Attribute prompts.

        Args:
            batch: token ids of each prompt, without padding. Lengths may differ.
            targets: target token id of each prompt; None means the model's own argmax at the attributed position.

        Returns:
            One attribution per prompt, in order, equal to those of the prompts one by one (to rounding).

        Raises:
            LokiError: for a prompt, target or position that the model cannot take, and where the engine cannot
                compute this model exactly.
        """

    def __enter__(self) -> Self:
        """Put the model in evaluation mode and freeze its parameters."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the model back with the modes and flags it came with."""


class NotExactError(LokiError):
    """The fast engine cannot compute this model exactly.

    Args:
        reason: why not.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the fast engine is not exact on this model ({reason}): use the engine captum or auto")
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.reason,)


class NotExactWarning(UserWarning):
    """The fast engine cannot compute something exactly, and Captum computes it instead."""


class FreezesModel:
    """Base of the engines: the model is frozen and in evaluation mode while the engine is entered.

    Args:
        model: the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._frozen = ExitStack()

    def __enter__(self) -> Self:
        self._frozen.enter_context(frozen(self._model))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._frozen.close()
