"""One phase of LoKI on several models, in a process of its own: `python -m tests.fresh_process PHASE FOLDER...`.

Each folder holds `base` and `positions.json`, may hold `experts` (which rows are meant), and gets what the phase
makes. What one process learnt of a family, by making its classes, is unknown to the next: every phase must find out for
itself.
"""

import sys
from pathlib import Path

PHASES = ("create", "train", "restore", "verify", "load")


def experts(folder: Path) -> str | None:
    return (folder / "experts").read_text() if (folder / "experts").is_file() else None


def create(folder: Path) -> None:
    from loki import create_loki_model

    create_loki_model(
        model_name=folder / "base",
        target_pos_path=folder / "positions.json",
        save_dir=folder / "loki_model",
        experts=experts(folder),
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

    positions = read_positions(folder / "positions.json")
    report = verify(folder / "base", folder / "restored", positions, experts=experts(folder))
    report.raise_for_differences()
    assert report.changed_rows > 0
    # A LoKI model says itself which rows are meant.
    verify(folder / "base", folder / "trained", positions).raise_for_differences()


def adapter(folder: Path) -> None:
    """Train a step on an adapter, and save it; `restore_adapter` is another process."""
    import torch
    from peft import PeftModel

    from loki.implanting.peft.zero import save_zero_adapter
    from loki.models.loading import load_model

    save_zero_adapter(folder / "base", folder / "positions.json", folder / "zero", experts=experts(folder))
    model = PeftModel.from_pretrained(load_model(folder / "base"), str(folder / "zero"), is_trainable=True)
    tokens = torch.tensor([[5, 9, 40, 77, 123]])
    optimizer = torch.optim.SGD([part for part in model.parameters() if part.requires_grad], lr=1.0)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    model.save_pretrained(str(folder / "adapter"))


def restore_adapter(folder: Path) -> None:
    import torch
    from peft import PeftModel

    from loki import restore_loki_model
    from loki.artefacts.positions import read_positions
    from loki.models.loading import load_model
    from loki.restoring.verify import verify

    restore_loki_model(folder / "adapter", folder / "merged", base_model=folder / "base")
    positions = read_positions(folder / "positions.json")
    report = verify(folder / "base", folder / "merged", positions, experts=experts(folder))
    report.raise_for_differences()
    assert report.changed_rows > 0
    tokens = torch.tensor([[5, 9, 40, 77]])
    with_adapter = PeftModel.from_pretrained(load_model(folder / "base"), str(folder / "adapter"))
    logits, merged = with_adapter(input_ids=tokens).logits, load_model(folder / "merged")(input_ids=tokens).logits
    torch.testing.assert_close(logits, merged, rtol=1e-4, atol=1e-4)


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
