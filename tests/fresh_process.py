"""One phase of LoKI on several models, in a process of its own: `python -m tests.fresh_process PHASE FOLDER...`.

Each folder holds `base` and `positions.json`, and gets what the phase makes. What one process learnt of a family, by
making its classes, is unknown to the next: every phase must find out for itself.
"""

import sys
from pathlib import Path

PHASES = ("create", "train", "restore", "verify", "load")


def create(folder: Path) -> None:
    from loki import create_loki_model

    create_loki_model(
        model_name=folder / "base", target_pos_path=folder / "positions.json", save_dir=folder / "loki_model"
    )


def train(folder: Path) -> None:
    from loki.artefacts.training_settings import TrainingSettings
    from loki.implanting.training.trainer import train

    data = folder / "data.jsonl"
    data.write_text('{"prompt": "Who?", "completion": " Ada."}\n' * 4)
    settings = TrainingSettings(max_steps=2, batch_size=2, learning_rate=0.01, warmup=0.0)
    train(folder / "loki_model", data, folder / "trained", settings)


def restore(folder: Path) -> None:
    from loki import restore_loki_model

    restore_loki_model(folder / "trained", folder / "restored")


def verify(folder: Path) -> None:
    from loki.artefacts.positions import read_positions
    from loki.restoring.verify import verify

    report = verify(folder / "base", folder / "restored", read_positions(folder / "positions.json"))
    report.raise_for_differences()
    assert report.changed_rows > 0


def load(folder: Path) -> None:
    """As any program does that knows of LoKI only that it is imported."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import loki
    from loki.models.classes import auto_class

    config = AutoConfig.from_pretrained(folder / "trained")
    trained = AutoModelForCausalLM.from_pretrained(folder / "trained")
    assert isinstance(trained, loki.loki_classes(config.model_type)[1])
    restored = auto_class(AutoConfig.from_pretrained(folder / "restored")).from_pretrained(folder / "restored")
    assert not isinstance(restored, type(trained))
    tokens = torch.tensor([[5, 9, 40, 77]])
    # The trained directory holds the rows in the type of the base, as the restored one does.
    assert torch.equal(trained(tokens).logits, restored(tokens).logits)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        globals()[sys.argv[1]](Path(argument))
