"""The model that is to be trained: what it must be, checked before anything is written."""

from pathlib import Path

from transformers import PretrainedConfig

from loki.artefacts.positions import Positions, check_positions, check_positions_fit, read_positions
from loki.errors import LokiError
from loki.implanting.create import loki_configuration
from loki.implanting.modeling import LoKIConfigMixin
from loki.models.architectures import text_config
from loki.models.checkpoint import check_weights
from loki.models.loading import load_config, resolve_model


def training_configuration(model: str | Path, positions: Path | None) -> PretrainedConfig:
    """The LoKI configuration to train `model` with.

    Args:
        model: a LoKI model directory; or an ordinary model, with `positions`.
        positions: positions file, for an ordinary model.

    Raises:
        LokiError: if the model is missing, damaged or of an unsupported kind, the positions do not fit it, or are
            missing or superfluous.
    """
    path = resolve_model(model)
    config = load_config(path)
    check_weights(path)
    if isinstance(config, LoKIConfigMixin):
        if positions is not None:
            raise LokiError(f"{model} is a LoKI model, which holds its positions: leave out --positions")
        if config.target_pos is None:
            raise LokiError(f"{model} is a LoKI model without target_pos: make it anew with `loki create`")
        text = text_config(config)
        check_positions_fit(
            check_positions(config.target_pos),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            origin=f"target_pos of {model}",
        )
        return config
    if positions is None:
        raise LokiError(f"{model} is an ordinary model: give --positions, or make a LoKI model with `loki create`")
    return loki_configuration(path, str(model), read_positions(positions), origin=f"positions file {positions}")


def quota_of(config: PretrainedConfig) -> float:
    """Percentage of the rows that the positions in a LoKI configuration make up."""
    positions: Positions = config.target_pos
    hidden: int = text_config(config).hidden_size
    return 100 * sum(map(len, positions)) / (len(positions) * hidden)
