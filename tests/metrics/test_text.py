"""Loss and divergence on texts against a naive reference: one window at a time, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.metrics import text as metric
from loki.metrics.text import encode_texts, text_divergence, text_loss
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.tolerances import assert_close

TEXTS = ["A short one.", "Été: naïve café, " * 9, "", "x", "def f(a):\n    return a + 1\n" * 20]


def naive(model: PreTrainedModel, text: str, window: int) -> tuple[list[torch.Tensor], list[int]]:
    """Log-probabilities `[T, V]` in float64 of every window of `text`, and the tokens that are predicted."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = [ids[start : start + window - 1] for start in range(0, len(ids), window - 1)]
    predictions = []
    for part in parts:
        with torch.no_grad():
            logits = model(torch.tensor([[tokenizer.bos_token_id, *part]])).logits[0, :-1]
        predictions.append(logits.double().log_softmax(-1))
    return predictions, ids


def reference(base: PreTrainedModel, new: PreTrainedModel, window: int) -> tuple[float, float, float, int]:
    """Sums of both losses and of the KL over all tokens of TEXTS, and how many tokens there are."""
    before = after = kl = 0.0
    count = 0
    for text in TEXTS:
        old_windows, ids = naive(base, text, window)
        new_windows, _ = naive(new, text, window)
        if not ids:
            continue
        old, changed = torch.cat(old_windows), torch.cat(new_windows)
        before -= float(old[range(len(ids)), ids].sum())
        after -= float(changed[range(len(ids)), ids].sum())
        kl += float((old.exp() * (old - changed)).sum())
        count += len(ids)
    return before, after, kl, count


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("window", [5, 64, 4000])
def test_equals_one_window_at_a_time(family: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric, "_LOGITS_BYTES", 4 * 320 * 256 * 3)  # batches of three and more
    base, new = tiny_model(family, seed=1), tiny_model(family, seed=2)
    before, after, kl, count = reference(base, new, min(window, 256))
    found = text_divergence(base, new, tiny_tokenizer(), TEXTS, window=window)
    assert found.base.windows.tokens.sum() == count == len("".join(TEXTS).encode())
    expected = torch.tensor([before / count, after / count, kl / count])
    assert_close(torch.tensor([found.base.loss, found.new.loss, found.kl_per_token]), expected)
    assert_close(text_loss(new, tiny_tokenizer(), TEXTS, window=window).nll, found.new.nll, torch.float32)


def test_sums_by_text() -> None:
    loss = text_loss(tiny_model(), tiny_tokenizer(), TEXTS)
    by_text = loss.nll_by_text()
    assert by_text[2] == 0
    assert_close(by_text[3:4], text_loss(tiny_model(), tiny_tokenizer(), TEXTS[3:4]).nll, torch.float32)
    assert_close(by_text.sum(), loss.nll.sum())


def test_a_model_does_not_diverge_from_itself() -> None:
    model = tiny_model()
    found = text_divergence(model, model, tiny_tokenizer(), TEXTS)
    assert not found.kl.any()
    assert torch.equal(found.base.nll, found.new.nll)


@given(st.lists(st.text(max_size=60), min_size=1, max_size=6), st.integers(2, 40))
def test_every_token_is_predicted_once(texts: list[str], window: int) -> None:
    tokenizer = tiny_tokenizer()
    if not any(texts):
        with pytest.raises(LokiError, match="no token to predict"):
            encode_texts(tokenizer, texts, max_length=256, window=window)
        return
    windows = encode_texts(tokenizer, texts, max_length=256, window=window)
    assert all(2 <= len(ids) <= window and ids[0] == tokenizer.bos_token_id for ids in windows.ids)
    for number, text in enumerate(texts):
        own = [
            token for ids, owner in zip(windows.ids, windows.texts, strict=True) if owner == number for token in ids[1:]
        ]
        assert own == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert windows.bytes == [len(text.encode()) for text in texts]


def test_without_a_start_token_the_first_token_is_given() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    windows = encode_texts(tokenizer, ["abcdefg"], max_length=256, window=4)
    ids = tokenizer("abcdefg")["input_ids"]
    assert windows.ids == [ids[0:4], ids[3:7]]


def test_the_end_token_starts_where_there_is_no_other() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert encode_texts(tokenizer, ["ab"], max_length=9).ids[0][0] == tokenizer.eos_token_id


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_mode_as_it_was(training: bool) -> None:
    model = tiny_model(attention_dropout=0.5).train(training)
    model.model.layers[0].eval()
    loss = text_loss(model, tiny_tokenizer(), TEXTS)
    assert model.training is training
    assert not model.model.layers[0].training
    assert torch.equal(loss.nll, text_loss(model.eval(), tiny_tokenizer(), TEXTS).nll)


def test_vocabularies_of_different_sizes_are_refused() -> None:
    with pytest.raises(LokiError, match="320 and 324"):
        text_divergence(tiny_model(), tiny_model(vocab_size=324), tiny_tokenizer(), TEXTS)


@pytest.mark.parametrize("window", [1, 0, -3])
def test_a_window_without_a_prediction_is_refused(window: int) -> None:
    with pytest.raises(LokiError, match=f"window of {window} tokens"):
        text_loss(tiny_model(), tiny_tokenizer(), TEXTS, window=window)
