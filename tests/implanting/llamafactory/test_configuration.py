"""Every setting of `loki train` has its counterpart in LlamaFactory's file."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from loki.artefacts.training_settings import TrainingSettings
from loki.implanting.llamafactory.configuration import DEEPSPEED_ZERO_2, configuration

SETTINGS = TrainingSettings()


def configure(settings: TrainingSettings = SETTINGS, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "model": Path("loki_model"),
        "dataset_folder": Path("run"),
        "output": Path("out"),
        "learning_rate": 3e-5,
        "template": "empty",
        "evaluate": False,
        "bf16": False,
        "use_cpu": True,
    }
    return configuration(settings, **{**given, **changes})


@pytest.mark.parametrize(
    ("name", "value", "key", "expected"),
    [
        ("epochs", 1.5, "num_train_epochs", 1.5),
        ("max_steps", 7, "max_steps", 7),
        ("batch_size", 3, "per_device_train_batch_size", 3),
        ("gradient_accumulation", 2, "gradient_accumulation_steps", 2),
        ("max_length", 77, "cutoff_len", 77),
        ("packing", True, "packing", True),
        ("warmup", 0.3, "warmup_steps", 0.3),
        ("scheduler", "linear", "lr_scheduler_type", "linear"),
        ("weight_decay", 0.1, "weight_decay", 0.1),
        ("loss", "dft", "use_dft_loss", True),
        ("loss", "asft", "use_asft_loss", True),
        ("loss", "eaft", "use_eaft_loss", True),
        ("gradient_checkpointing", True, "disable_gradient_checkpointing", False),
        ("save_steps", 5, "save_steps", 5),
        ("load_best", True, "load_best_model_at_end", True),
        ("early_stopping", 2, "early_stopping_steps", 2),
        ("logging_steps", 3, "logging_steps", 3),
        ("seed", 1, "seed", 1),
        ("report_to", "tensorboard", "report_to", "tensorboard"),
    ],
)
def test_settings(name: str, value: Any, key: str, expected: Any) -> None:
    assert configure().get(key) != expected
    assert configure(TrainingSettings(**{name: value}))[key] == expected


def test_no_setting_is_forgotten() -> None:
    tried = {row[0] for row in test_settings.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    others = {"learning_rate", "rate_damage", "eval_steps", "load_in_4bit", "load_in_8bit"}  # the last two: refused
    assert tried | others == {field.name for field in fields(TrainingSettings)}


def test_paths_are_absolute() -> None:
    made = configure(resume_from=Path("out/checkpoint-2"), deepspeed=Path("run/deepspeed.json"))
    paths = ("model_name_or_path", "dataset_dir", "output_dir", "resume_from_checkpoint", "deepspeed")
    assert all(Path(made[key]).is_absolute() for key in paths)


def test_the_method_is_full_tuning_of_a_trusted_loki_model() -> None:
    made = configure(learning_rate=0.25, template="llama3", evaluate=True, bf16=True, use_cpu=False)
    assert (made["finetuning_type"], made["trust_remote_code"], made["stage"]) == ("full", True, "sft")
    assert (made["learning_rate"], made["template"], made["bf16"], made["use_cpu"]) == (0.25, "llama3", True, False)
    assert (made["eval_dataset"], made["eval_strategy"]) == ("held_out", "epoch")


def test_held_out_data_are_looked_at_with_every_checkpoint() -> None:
    made = configure(TrainingSettings(save_steps=5, early_stopping=2), evaluate=True)
    assert (made["eval_strategy"], made["eval_steps"], made["save_steps"]) == ("steps", 5, 5)
    often = configure(TrainingSettings(save_steps=6, eval_steps=3), evaluate=True)
    assert (often["eval_strategy"], often["eval_steps"], often["save_steps"]) == ("steps", 3, 6)
    assert (made["load_best_model_at_end"], made["metric_for_best_model"]) == (True, "eval_loss")


def test_what_is_not_asked_for_is_left_out() -> None:
    optional = {
        "tokenized_path",
        "eval_dataset",
        "save_steps",
        "resume_from_checkpoint",
        "deepspeed",
        "early_stopping_steps",
    }
    assert not optional & set(configure())


def test_deepspeed_does_not_shard_weights() -> None:
    assert DEEPSPEED_ZERO_2["zero_optimization"]["stage"] == 2
