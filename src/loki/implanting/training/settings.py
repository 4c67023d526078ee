"""How to train. The options themselves stand where the command line reads them without importing Transformers."""

from loki.artefacts.training_settings import (
    DEFAULT_EPOCHS,
    Rate,
    Report,
    Scheduler,
    TrainingSettings,
    check_held_out,
    published_learning_rate,
)

__all__ = [
    "DEFAULT_EPOCHS",
    "Rate",
    "Report",
    "Scheduler",
    "TrainingSettings",
    "check_held_out",
    "published_learning_rate",
]
