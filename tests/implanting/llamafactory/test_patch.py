"""What LoKI changes in LlamaFactory, on a stand-in that sets models up as LlamaFactory 0.9.5 does."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments, trainer

from loki.errors import LokiError
from loki.implanting.llamafactory.guard import SelectedRowsGuard
from loki.implanting.llamafactory.patch import ADAPTER_MODULE, patch_llamafactory, patch_when_imported
from tests.implanting.llamafactory.test_guard import loki_model
from tests.tiny_models import tiny_model


def _setup_full_tuning(
    model: PreTrainedModel, finetuning_args: Any, is_trainable: bool, cast_trainable_params_to_fp32: bool
) -> None:
    for parameter in model.parameters():
        if is_trainable and cast_trainable_params_to_fp32:
            parameter.data = parameter.data.to(torch.float32)


def _setup_freeze_tuning(
    model: PreTrainedModel, finetuning_args: Any, is_trainable: bool, cast_trainable_params_to_fp32: bool
) -> None:
    model.lm_head.weight.requires_grad_(True)


def _setup_lora_tuning(
    config: Any,
    model: PreTrainedModel,
    model_args: Any,
    finetuning_args: Any,
    is_trainable: bool,
    cast_trainable_params_to_fp32: bool,
) -> PreTrainedModel:
    return model


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = ModuleType(ADAPTER_MODULE)
    for setup in (_setup_full_tuning, _setup_freeze_tuning, _setup_lora_tuning):
        setattr(module, setup.__name__, setup)
    monkeypatch.setitem(sys.modules, ADAPTER_MODULE, module)
    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", list(trainer.DEFAULT_CALLBACKS))
    return module


def dtypes(model: PreTrainedModel, *, trainable: bool) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters() if parameter.requires_grad == trainable}


def test_frozen_weights_keep_their_type(adapter: ModuleType) -> None:
    patch_llamafactory()
    model = loki_model(torch.bfloat16)
    adapter._setup_full_tuning(model, None, True, True)
    assert dtypes(model, trainable=True) == {torch.float32}
    assert dtypes(model, trainable=False) == {torch.bfloat16}


def test_nothing_is_cast_where_llamafactory_would_not(adapter: ModuleType) -> None:
    patch_llamafactory()
    model = loki_model(torch.bfloat16)
    adapter._setup_full_tuning(model, None, is_trainable=True, cast_trainable_params_to_fp32=False)
    assert dtypes(model, trainable=True) == {torch.bfloat16}


def test_other_models_are_set_up_as_before(adapter: ModuleType) -> None:
    patch_llamafactory()
    model = tiny_model(dtype=torch.bfloat16)
    adapter._setup_full_tuning(model, None, True, True)
    assert dtypes(model, trainable=True) == {torch.float32}


def test_freeze_tuning_of_a_loki_model_is_stopped(adapter: ModuleType) -> None:
    patch_llamafactory()
    with pytest.raises(LokiError, match=r"lm_head\.weight is trainable"):
        adapter._setup_freeze_tuning(loki_model(), None, True, True)


def test_it_is_patched_once(adapter: ModuleType) -> None:
    for _ in range(2):
        patch_when_imported()
    assert trainer.DEFAULT_CALLBACKS.count(SelectedRowsGuard) == 1
    assert adapter._setup_full_tuning.__wrapped__ is _setup_full_tuning


def test_without_llamafactory_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, ADAPTER_MODULE, raising=False)
    patch_llamafactory()
    assert SelectedRowsGuard not in trainer.DEFAULT_CALLBACKS


def test_another_release_is_refused(adapter: ModuleType) -> None:
    del adapter._setup_full_tuning
    with pytest.raises(LokiError, match=r"install 0\.9\.5"):
        patch_llamafactory()


def test_another_release_trains_anything_but_selected_rows(adapter: ModuleType) -> None:
    del adapter._setup_full_tuning
    patch_when_imported()
    guard = trainer.DEFAULT_CALLBACKS[-1]
    arguments = (TrainingArguments("unused"), TrainerState(), TrainerControl())
    guard.on_train_begin(*arguments, model=tiny_model())
    with pytest.raises(LokiError, match=r"install 0\.9\.5"):
        guard.on_train_begin(*arguments, model=loki_model())
