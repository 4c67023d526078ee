"""Logits of some positions against those of all, for models that can leave the others out and those that cannot."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from loki.models.logits import logits_at
from tests.tiny_models import tiny_model
from tests.tolerances import assert_close

IDS = torch.arange(5, 17).view(2, 6)
COLUMNS = torch.tensor([1, 4, 5])


def test_equals_those_of_all_positions() -> None:
    model = tiny_model()
    assert_close(logits_at(model, COLUMNS, input_ids=IDS), model(IDS).logits[:, COLUMNS], torch.float32)


def test_an_adapters_others_are_not_computed_either() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    found = logits_at(model, COLUMNS, input_ids=IDS)
    assert_close(found, model(IDS).logits[:, COLUMNS], torch.float32)
    assert seen == [3, 6]


class _Whole(nn.Module):
    """A model that gives all logits, whatever is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model()

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> object:
        return self.model(input_ids=input_ids, use_cache=use_cache)


def test_a_model_that_computes_them_all() -> None:
    model = _Whole()
    assert_close(logits_at(model, COLUMNS, input_ids=IDS), model.model(IDS).logits[:, COLUMNS], torch.float32)
