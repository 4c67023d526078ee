"""The published project's path of `LoKILinear`; here it is `loki.implanting.linear`."""

from transformers import PreTrainedModel

from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.implanting.linear import LoKILinear
from loki.implanting.splitting import loki_linears, split_rows

__all__ = ["LoKILinear", "apply_loki_linear"]


def apply_loki_linear(model: PreTrainedModel, target_pos: Positions | None = None) -> PreTrainedModel:
    """Make the selected rows of a model trainable and freeze everything else, unless that was done before.

    LoKI model classes do it by themselves when they are loaded.

    Args:
        model: a causal language model.
        target_pos: one list of row indices per layer; None takes `target_pos` of the model's configuration.

    Returns:
        The model.

    Raises:
        LokiError: if there are no positions, or they do not fit the model.
    """
    positions = getattr(model.config, "target_pos", None) if target_pos is None else target_pos
    if not loki_linears(model):
        if positions is None:
            raise LokiError("nothing says which rows to train: give target_pos, one list of row indices per layer")
        split_rows(model, positions)
    return model
