"""Loss and exact match of answers against one example at a time and against generation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loki.errors import LokiError
from loki.metrics import completions
from loki.metrics.completions import completion_scores
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.tolerances import assert_close

TEXTS = [("What is it? ", "A cat."), ("x", "y"), ("one two ", "three four five"), ("a", "b" * 30)]


def test_equals_one_example_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "_LOGITS_BYTES", 4 * 320 * 40)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ids = [tokenizer(prompt + answer)["input_ids"] for prompt, answer in TEXTS]
    masks = [[0] * len(prompt) + [1] * len(answer) for prompt, answer in TEXTS]
    masks[0][3] = 1  # an answer may lie in several places
    found = completion_scores(model, ids, masks)
    losses = []
    for tokens, mask in zip(ids, masks, strict=True):
        labels = torch.where(torch.tensor([mask]).bool(), torch.tensor([tokens]), -100)
        losses.append(model(torch.tensor([tokens]), labels=labels).loss.item() * sum(mask))
    assert_close(found.nll, torch.tensor(losses, dtype=torch.float64), torch.float32)
    assert found.tokens.tolist() == [7, 1, 15, 30]
    assert found.loss == pytest.approx(sum(losses) / 53, rel=1e-5)


def test_right_is_what_generation_gives() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt = tokenizer("abc", return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=6, do_sample=False, eos_token_id=[])[0].tolist()
    mask = [0, 0, 0] + [1] * (len(generated) - 3)
    spoiled = [*generated[:-1], (generated[-1] + 1) % 320]
    found = completion_scores(model, [generated, spoiled, spoiled], [mask, mask, [*mask[:-1], 0]])
    assert found.right.tolist() == [True, False, True]
    assert found.accuracy == pytest.approx(2 / 3)


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=12), min_size=1, max_size=12), st.integers(1, 400))
def test_batches_hold_every_example_once_and_no_more_logits_than_wanted(wanted: list[list[bool]], most: int) -> None:
    masks = [[0, *(int(one) for one in mask)] for mask in wanted]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completions, "_LOGITS_BYTES", 4 * 10 * most)
        patch.setattr(completions, "_TOKENS", 40)
        batches = list(completions._batches(masks, vocabulary=10))
    assert sorted(index for batch in batches for index in batch) == list(range(len(masks)))
    for batch in batches:
        columns = {column for index in batch for column, one in enumerate(masks[index]) if one}
        assert len(batch) == 1 or (len(columns) * len(batch) <= most and len(batch) * len(masks[batch[0]]) <= 40)


def test_bad_input() -> None:
    with pytest.raises(LokiError, match="no examples"):
        completion_scores(tiny_model(), [], [])
    with pytest.raises(LokiError, match="example 2 has no answer"):
        completion_scores(tiny_model(), [[5, 6], [7, 8]], [[0, 1], [1, 0]])
