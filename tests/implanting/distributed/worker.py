"""What the processes of these tests run: a user's training script.

`python -m tests.implanting.distributed.worker WORK.json`, alone or under torchrun. Writes what only the processes know
to `OUTPUT/facts-RANK.json`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import get_peft_model
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

import loki  # noqa: F401  registers the model classes and the PEFT method
from loki.implanting.peft import LoKIConfig
from loki.implanting.training.rows import SelectedRows
from loki.models.loading import load_tokenizer
from tests.implanting.distributed.work import ZERO_2, Work

DATA = [{"text": f"The answer to question {number} is {number * number}."} for number in range(32)]


class Facts(TrainerCallback):
    """Notes how the parameters are held while training runs."""

    def __init__(self) -> None:
        self.noted: dict[str, Any] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = dict(kwargs["model"].named_parameters())
        self.noted = {
            "parameters": len(parameters),
            "sharded": sum(isinstance(parameter, DTensor) for parameter in parameters.values()),
            "trainable": sorted(name for name, parameter in parameters.items() if parameter.requires_grad),
            "optimizer": type(getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])).__name__,
        }


def arguments(work: Work) -> TrainingArguments:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    options: dict[str, Any] = {
        "output_dir": work.output,
        "max_steps": work.steps,
        "save_steps": 2,
        "per_device_train_batch_size": 4 // processes,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "lr_scheduler_type": "cosine",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": work.bf16 and work.way == "zero2",  # DeepSpeed wants to know the type of all weights
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
    }
    if work.way == "fsdp2":
        options["fsdp"] = "full_shard auto_wrap"
        options["fsdp_config"] = {
            "version": 2,
            "reshard_after_forward": True,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "FULL_STATE_DICT",
            "cpu_ram_efficient_loading": work.load_on_rank_0,
        }
    if work.way == "zero2":
        options["deepspeed"] = ZERO_2
    if work.trainer == "trainer":
        return TrainingArguments(**options)
    return SFTConfig(max_length=32, gradient_checkpointing=False, **options)


def shard_on_cpus() -> None:
    """Accelerate shards on GPUs only, and falls back to DDP on CPUs without a word; torch can shard on both."""
    join = PartialState.__init__

    def join_as_gpus(self: PartialState, *args: Any, **kwargs: Any) -> None:
        joins_now = not PartialState._shared_state
        join(self, *args, **kwargs)
        if joins_now:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = join_as_gpus


def main(work: Work) -> None:
    torch.set_num_threads(1)
    if work.way == "fsdp2":
        shard_on_cpus()
    made = arguments(work)
    tokenizer = load_tokenizer(work.model)
    model = AutoModelForCausalLM.from_pretrained(work.model)
    if work.adapter:
        model = get_peft_model(model, LoKIConfig(positions=work.positions))
    facts = Facts()
    options: dict[str, Any] = {"model": model, "args": made, "processing_class": tokenizer, "callbacks": [facts]}
    dataset = Dataset.from_list(DATA)
    if work.guarded:
        options["callbacks"].append(SelectedRows(model, Path(work.resume) if work.resume else None))
    if work.trainer == "trainer":
        tokens = dataset.map(lambda row: tokenizer(row["text"]), remove_columns="text")
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        trainer: Any = Trainer(**options, train_dataset=tokens, data_collator=collator)
    else:
        trainer = SFTTrainer(**options, train_dataset=dataset)
    trainer.train(resume_from_checkpoint=work.resume)
    trainer.save_model(f"{work.output}/final")
    (Path(work.output) / f"facts-{made.process_index}.json").write_text(json.dumps(facts.noted))


if __name__ == "__main__":
    main(Work(**json.loads(Path(sys.argv[1]).read_text())))
