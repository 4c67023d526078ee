"""A training of anything but the selected rows is stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from loki import LoKIConfig, LoKILlamaForCausalLM, loki_classes
from loki.artefacts.moments import MomentsOrigin, write_moments
from loki.errors import LokiError
from loki.implanting.llamafactory.guard import SelectedRowsGuard, check_selected_rows
from loki.implanting.splitting import active_parameters
from loki.implanting.training.rows import ROWS_FILE
from tests.implanting.llamafactory.files import POSITIONS
from tests.tiny_models import tiny_config, tiny_model


def loki_model(dtype: torch.dtype = torch.float32) -> Any:
    config = loki_classes("llama")[0].from_dict({**tiny_config("llama").to_dict(), "target_pos": POSITIONS})
    return LoKILlamaForCausalLM(config).to(dtype)


def adapted(**settings: Any) -> Any:
    return get_peft_model(tiny_model(), LoKIConfig(positions=POSITIONS, **settings))


@pytest.mark.parametrize("make", [loki_model, adapted, lambda: adapted(rank=2), tiny_model])
def test_what_passes(make: Any) -> None:
    check_selected_rows(make())


def test_a_protected_adapter_passes_and_its_directions_stay_frozen(tmp_path: Path) -> None:
    origin = MomentsOrigin("tiny", "", "text", "", 1, 400, "float32", "")
    inputs = torch.randn(3, 400, tiny_model().model.layers[0].mlp.down_proj.in_features)
    write_moments(tmp_path / "moments.safetensors", [(rows.T @ rows / 400)[None] for rows in inputs], origin)
    model = adapted(protect=0.5, moments=str(tmp_path / "moments.safetensors"))
    check_selected_rows(model)
    kinds = {name.split(".")[-3] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert kinds == {"loki_C"}


@pytest.mark.parametrize("make", [loki_model, adapted])
def test_anything_else_trainable(make: Any) -> None:
    model = make()
    next(parameter for name, parameter in model.named_parameters() if "embed" in name).requires_grad_(True)
    with pytest.raises(LokiError, match=r"embed_tokens\.weight is trainable"):
        check_selected_rows(model)


@pytest.mark.parametrize(("make", "kind"), [(loki_model, "active_weight"), (adapted, "loki_delta")])
def test_a_selected_row_that_is_frozen(make: Any, kind: str) -> None:
    model = make()
    next(parameter for name, parameter in model.named_parameters() if kind in name).requires_grad_(False)
    with pytest.raises(LokiError, match="frozen"):
        check_selected_rows(model)


def test_lora_on_a_loki_model() -> None:
    model = get_peft_model(loki_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(LokiError, match=r"lora_A.* trainable"):
        check_selected_rows(model)


def train(model: Any, output: Path, steps: int, **settings: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        save_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    for parameter in active_parameters(model).values():  # as LlamaFactory does before
        parameter.data = parameter.data.to(torch.float32)
    rows = [{"input_ids": [seed, 7, 8], "labels": [seed, 7, 8]} for seed in range(8)]
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[SelectedRowsGuard])
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    return trainer


def test_training_begins_only_with_the_rows(tmp_path: Path) -> None:
    model = loki_model()
    model.lm_head.weight.requires_grad_(True)
    with pytest.raises(LokiError, match=r"lm_head\.weight is trainable"):
        train(model, tmp_path, 1)


def test_resuming_is_exact_in_bfloat16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = loki_model(torch.bfloat16)
    begin = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    train(start, tmp_path / "whole", 4)
    first, second = loki_model(torch.bfloat16), loki_model(torch.bfloat16)
    first.load_state_dict(begin)
    train(first, tmp_path / "parts", 2)
    assert (tmp_path / "parts" / "checkpoint-2" / ROWS_FILE).is_file()
    train(second, tmp_path / "parts", 4, resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    whole, parts = active_parameters(start), active_parameters(second)
    assert {parameter.dtype for parameter in whole.values()} == {torch.float32}
    assert all(torch.equal(parameter, parts[name]) for name, parameter in whole.items())


@pytest.mark.parametrize("make", [loki_model, adapted])
@pytest.mark.parametrize("hidden", [True, False])
def test_a_loss_that_is_no_number_stops_training(make: Any, hidden: bool, tmp_path: Path) -> None:
    model = make()
    next(parameter for name, parameter in model.named_parameters() if "lm_head" in name).data.fill_(float("nan"))
    with pytest.raises(LokiError, match=r"(?i)nan.* at step 1"):
        train(model, tmp_path, 2, logging_steps=1, logging_nan_inf_filter=hidden)
