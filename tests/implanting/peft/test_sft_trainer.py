"""TRL's SFTTrainer trains and resumes a LoKI adapter."""

import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from trl import SFTConfig, SFTTrainer

from loki.implanting.peft import LoKIConfig
from loki.implanting.training.damage import DamageBudget, damage
from loki.implanting.training.keep import AddsKeepTerm, KeepTerm
from loki.models.loading import load_model, load_tokenizer
from loki.restoring.restore import restore_loki_model
from loki.restoring.verify import verify
from tests.implanting.peft.adapters import D_FF, POSITIONS, logits
from tests.tiny_models import save_tiny_model

DATA = Dataset.from_list([{"text": f"The answer to question {number} is {number * number}."} for number in range(16)])


def trainer(
    base: Path, output: Path, rank: int | None, experts: str | None = None, made: type = SFTTrainer, **options
) -> SFTTrainer:
    arguments = SFTConfig(
        output_dir=str(output),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        max_length=32,
        dataloader_pin_memory=False,
        **{"learning_rate": 1e-2, "gradient_checkpointing": False, **options},
    )
    return made(
        model=load_model(base),
        args=arguments,
        train_dataset=DATA,
        processing_class=load_tokenizer(base),
        eval_dataset=DATA,
        peft_config=LoKIConfig(positions=POSITIONS, rank=rank, experts=experts),
    )


@pytest.mark.parametrize("rank", [None, 2])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path, llama_dir, rank):
    whole = trainer(llama_dir, tmp_path / "run", rank)
    whole.train()
    expected = load_file(tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors")
    assert all(tensor.count_nonzero() > 0 for tensor in expected.values())
    if rank is None:
        assert sum(tensor.numel() for tensor in expected.values()) == 5 * D_FF
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resumed = trainer(llama_dir, tmp_path / "run", rank)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    actual = load_file(tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors")
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    loaded = PeftModel.from_pretrained(load_model(llama_dir), tmp_path / "run" / "checkpoint-4")
    assert torch.equal(logits(loaded), logits(whole.model.eval()))


def test_the_best_checkpoint_is_reloaded_at_the_end(tmp_path, llama_dir):
    run = trainer(
        llama_dir,
        tmp_path,
        None,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the loss falls, so the best checkpoint is not the last one
    )
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    best = PeftModel.from_pretrained(load_model(llama_dir), tmp_path / "checkpoint-2")
    assert torch.equal(logits(run.model.eval()), logits(best))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("packing", ["bfd", "wrapped", None])
def test_packing_and_gradient_checkpointing_train_only_the_rows(tmp_path, llama_dir, packing, use_reentrant):
    run = trainer(
        llama_dir,
        tmp_path,
        None,
        save_strategy="no",
        packing=packing is not None,
        packing_strategy=packing or "bfd",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": use_reentrant},
    )
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train()
    changed = [name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) == 2
    assert all("down_proj.loki_delta" in name for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_rows_of_all_experts_are_trained(tmp_path: Path, gradient_checkpointing: bool) -> None:
    """The shared expert's and every expert's, and nothing else; checkpointing computes the experts twice."""
    base = save_tiny_model(tmp_path / "base", "deepseek_v3")
    run = trainer(base, tmp_path / "run", 2, "all", gradient_checkpointing=gradient_checkpointing)
    run.train()
    tensors = load_file(tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors")
    assert sum(".experts." in name for name in tensors) == sum(".shared_experts." in name for name in tensors) == 2
    assert all(tensor.count_nonzero() > 0 for tensor in tensors.values())
    loaded = PeftModel.from_pretrained(load_model(base), tmp_path / "run" / "checkpoint-4")
    assert torch.equal(logits(loaded), logits(run.model.eval()))
    restored = restore_loki_model(tmp_path / "run" / "checkpoint-4", tmp_path / "restored", base_model=base)
    report = verify(base, restored, POSITIONS, experts="all")
    assert (report.changed_rows, report.differences) == (5, [])


class KeepingTrainer(AddsKeepTerm, SFTTrainer):
    pass


def test_what_is_known_is_kept(tmp_path, llama_dir):
    windows = [load_tokenizer(llama_dir)(row["text"])["input_ids"][:24] for row in DATA]
    found = {}
    for weight in (0.0, 100.0):
        run = trainer(llama_dir, tmp_path / str(weight), None, made=KeepingTrainer, learning_rate=5e-2)
        run.keep_term = KeepTerm(windows, weight, per_step=4)
        run.train()
        found[weight] = damage(run.model, windows)
    assert 0 < found[100.0] < 0.5 * found[0.0]


def test_a_budget_puts_back_the_last_adapter_inside_it(tmp_path, llama_dir):
    windows = [load_tokenizer(llama_dir)(row["text"])["input_ids"] for row in DATA]
    run = trainer(llama_dir, tmp_path, None, learning_rate=5e-2)
    budget = DamageBudget(windows[:4], budget=1e-3, every=1, console=Console(quiet=True))
    run.add_callback(budget)
    run.train()
    assert budget.left
    assert budget.inside_damage <= 1e-3 < 1
    assert damage(run.model, windows[:4]) == pytest.approx(budget.inside_damage, rel=1e-4, abs=1e-9)
    # A step on, it was outside: what is there now is of the step before.
    assert run.state.global_step == budget.inside_step + 1
