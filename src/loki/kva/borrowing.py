"""Borrowing the user's model: it leaves as it came, whatever happens in between."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

import torch
from transformers import PreTrainedModel


@contextmanager
def borrowed(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and frozen parameters while the block runs.

    Frozen parameters let autograd keep less for the backward pass; no parameter ever gets a gradient here.
    Every module's mode and every parameter's `requires_grad` are put back, after errors and interrupts too.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)


class ModelBorrower:
    """Borrows a model for as long as it is entered as a context manager.

    Args:
        model: the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._borrowed = ExitStack()

    def __enter__(self) -> Self:
        self._borrowed.enter_context(borrowed(self._model))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._borrowed.close()


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go: the embedding's device, or the CPU where accelerate keeps the embedding elsewhere."""
    device: torch.device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device
