"""Forward hooks that are gone when their block ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


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
