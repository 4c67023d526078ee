"""LoKI as a PEFT method: `get_peft_model(model, LoKIConfig(positions=...))`. Importing this package registers it."""

from loki.implanting.peft.config import LoKIConfig
from loki.implanting.peft.layer import RowAdapter
from loki.implanting.peft.model import LoKIModel
from loki.implanting.peft.register import register_loki

register_loki()

__all__ = ["LoKIConfig", "LoKIModel", "RowAdapter"]
