"""Rows that can be switched back, for a while, to what they were before training."""

import torch
from torch import nn

from loki.errors import LokiError
from loki.implanting.sharding import under_fsdp


class SwitchableRows(nn.Module):
    """A module with active rows, which can compute with those of its base instead.

    Attributes:
        weight: the frozen weight that the rows belong to.
    """

    weight: torch.Tensor

    _base: tuple[torch.Tensor, torch.Tensor | None] | None = None
    _shown: tuple[torch.Tensor, torch.Tensor | None] | None = None
    _base_is_weight = False
    _shows_weight = False

    def active_rows(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The active rows and their entries of the bias as they are now, for autograd."""
        raise NotImplementedError

    def remember_base(self) -> None:
        """Keep a copy of the active rows as they are now, for `show_base`.

        Under FSDP nothing needs to be kept: nothing is written into the weight, which stays the base's.
        """
        if under_fsdp():
            self._base_is_weight = True
            return
        weight, bias = self.active_rows()
        self._base = (
            weight.detach().to(self.weight.dtype, copy=True),
            None if bias is None else bias.detach().to(self.weight.dtype, copy=True),
        )

    def show_base(self, shown: bool) -> None:
        """Compute with the remembered rows instead of the active ones, or again with the active ones.

        Not between a forward pass and its backward pass, which share the weight.

        Raises:
            LokiError: if none were remembered.
        """
        if self._base_is_weight:
            self._shows_weight = shown
            return
        if shown and self._base is None:
            raise LokiError("the base's rows were not remembered: call remember_base before training")
        self._shown = self._base if shown else None
        if self._shown is not None and self._shown[0].device != self.weight.device:
            weight, bias = self._shown
            self._base = self._shown = (
                weight.to(self.weight.device),
                None if bias is None else bias.to(self.weight.device),
            )

    def _weight_is_ours(self) -> bool:
        """Whether what is written into the weight stays there: not if it is sharded, offloaded, or being traced."""
        if torch.compiler.is_compiling() or hasattr(self, "_hf_hook"):
            return False
        return not (torch.distributed.is_available() and torch.distributed.is_initialized())
