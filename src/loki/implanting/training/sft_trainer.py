"""TRL's trainer for LoKI models: with a term that keeps what was known, and checkpoints read with care."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from trl import SFTTrainer

from loki.implanting.training.keep import AddsKeepTerm, KeepTerm
from loki.implanting.training.quantised import put_best_rows
from loki.inputs import reading
from loki.models.architectures import text_config

_REMOVE = "it is damaged: remove it, and run the same command again"
# What TRL sets in the configuration of a model with experts, which would be saved with it.
_ROUTING = ("output_router_logits", "router_aux_loss_coef")


class RowsTrainer(AddsKeepTerm, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer of a LoKI model.

    Args:
        *args: as for `SFTTrainer`.
        keep: what is added to the loss; None adds nothing.
        **options: as for `SFTTrainer`.
    """

    def __init__(self, *args: Any, keep: KeepTerm | None = None, **options: Any) -> None:
        model: PreTrainedModel = options["model"]
        config = text_config(model.config)
        routing = {name: getattr(config, name) for name in _ROUTING if hasattr(config, name)}
        super().__init__(*args, **options)
        for name, value in routing.items():
            setattr(config, name, value)
        self.keep_term = keep

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Write none: TRL's says "a fine-tuned version of None", see `loki.artefacts.model_card`."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Quantised weights stay as they are; `SelectedRows` puts the checkpoint's rows."""
        if getattr(self.model, "unquantised", None) is None:
            with reading("checkpoint", resume_from_checkpoint, advice=_REMOVE):
                super()._load_from_checkpoint(resume_from_checkpoint, model=model)

    def _load_best_model(self) -> None:
        if getattr(self.model, "unquantised", None) is None:
            super()._load_best_model()
        else:
            put_best_rows(self.model, Path(self.state.best_model_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading("checkpoint", str(checkpoint), advice=_REMOVE):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading("checkpoint", str(checkpoint), advice=_REMOVE):
            super()._load_rng_state(checkpoint)
