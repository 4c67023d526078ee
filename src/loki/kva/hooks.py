"""Looking into a model and leaving it as it was: hooks, modes and flags are put back when their block ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def hidden_states(output: Any) -> Tensor:
    """The hidden states in a module's output: the output itself, or its first element where it is a tuple."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def with_hidden_states(output: Any, replacement: Tensor) -> Any:
    """`output` with its hidden states replaced."""
    return (replacement, *output[1:]) if isinstance(output, tuple) else replacement


@contextmanager
def output_hook(module: nn.Module, edit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Pass the hidden states that `module` puts out through `edit`; None leaves them as they are."""

    def hook(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        replacement = edit(hidden_states(output))
        return None if replacement is None else with_hidden_states(output, replacement)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def input_hook(
    module: nn.Module, edit: Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None]
) -> Iterator[None]:
    """Pass the arguments of `module` (positional, by keyword) through `edit`; None leaves them as they are."""

    def hook(_module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        return edit(arguments, keywords)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
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


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go: the embedding's device, or the CPU where accelerate keeps the embedding elsewhere."""
    device: torch.device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def vocab_size(model: PreTrainedModel) -> int:
    """Number of token ids that the model takes."""
    return int(model.get_input_embeddings().weight.shape[0])
