"""Predictions where loss is taken are those of the whole forward pass, whatever the model can leave out."""

from types import MethodType

import pytest
import torch
from torch.nn.functional import cross_entropy

from loki.implanting.training.encoded import Encoded, collate, trained_predictions
from tests.tiny_models import tiny_model
from tests.tolerances import assert_close

EXAMPLES = [
    Encoded([5, 6, 7, 8, 9, 10], [False, False, False, True, True, True]),
    Encoded([11, 12, 13], [False, True, True]),
    Encoded([3, 4, 5, 6], [False, True, False, True]),  # an answer in the middle
]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_loss_and_gradient_are_the_models_own(family: str) -> None:
    model = tiny_model(family).train(False)
    batch = collate(EXAMPLES, model.device)
    loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits, wanted, owners = trained_predictions(model, batch)
    assert wanted.tolist() == [8, 9, 10, 12, 13, 4, 6]
    assert owners.tolist() == [0, 0, 0, 1, 1, 2, 2]
    found = cross_entropy(logits, wanted)
    assert_close(found, loss)
    found.backward()
    for name, parameter in model.named_parameters():
        if name in gradients and parameter.grad is not None:
            assert_close(parameter.grad, gradients[name])


def test_models_that_compute_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama").eval()
    batch = collate(EXAMPLES, model.device)
    expected = trained_predictions(model, batch)
    whole = type(model).forward

    def forward(self: object, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> object:
        return whole(self, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", MethodType(forward, model))
    found = trained_predictions(model, batch)
    assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
