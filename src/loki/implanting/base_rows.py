"""The base model inside a model that is being trained: the same weights, with the rows' change switched off."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from torch import nn

from loki.errors import LokiError
from loki.implanting.splitting import loki_linears


def remember_base(model: nn.Module) -> None:
    """Keep a copy of the rows of a LoKI model, before they are trained. For an adapter there is nothing to do."""
    for linear in loki_linears(model).values():
        linear.remember_base()


@contextmanager
def base_rows(model: nn.Module) -> Iterator[None]:
    """Within the block, the model computes what its base does.

    Args:
        model: a LoKI model whose base was remembered; or one with PEFT adapters, which are switched off. Do not enter
            the block between a forward pass and its backward pass.

    Raises:
        LokiError: if there is neither.
    """
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield
        return
    linears = loki_linears(model)
    if not linears:
        raise LokiError("this model has no selected rows, so there is nothing to switch off: train a LoKI model")
    try:
        for linear in linears.values():
            linear.show_base(True)
        yield
    finally:
        for linear in linears.values():
            linear.show_base(False)
