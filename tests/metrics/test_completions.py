"""Loss and exact match of completions against one example at a time and against generation."""

import pytest
import torch

from loki.errors import LokiError
from loki.metrics import completions
from loki.metrics.completions import completion_scores, encode_example
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.tolerances import assert_close

TEXTS = [("What is it? ", "A cat."), ("", "y"), ("one two ", "three four five"), ("a", "b" * 30)]


def test_texts_end_with_the_end_of_sequence() -> None:
    tokenizer = tiny_tokenizer()
    found = encode_example(tokenizer, "ab", "cd")
    assert found.ids == [*tokenizer("abcd")["input_ids"], tokenizer.eos_token_id]
    assert (found.prompt_length, found.end) == (2, 5)


def test_conversations_are_what_the_template_makes_of_them() -> None:
    tokenizer = tiny_tokenizer()
    prompt, answer = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "yo"}]
    found = encode_example(tokenizer, prompt, answer)
    assert tokenizer.decode(found.ids) == "<|user|>hi<|end|><|assistant|>yo<|end|>"
    assert tokenizer.decode(found.ids[found.prompt_length : found.end]) == "yo<|end|>"


def test_an_answer_ends_where_the_turn_does() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|end|>"
    tokenizer.chat_template += "{{ '\\n' }}"
    prompt, answer = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "yo"}]
    found = encode_example(tokenizer, prompt, answer)
    assert tokenizer.decode(found.ids[found.prompt_length : found.end]) == "yo<|end|>"


def test_equals_one_example_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "_LOGITS_BYTES", 4 * 320 * 40)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    examples = [encode_example(tokenizer, prompt or "<s>", completion) for prompt, completion in TEXTS]
    found = completion_scores(model, examples)
    losses = []
    for example in examples:
        ids = torch.tensor([example.ids])
        labels = ids.clone()
        labels[:, : example.prompt_length] = -100
        losses.append(model(ids, labels=labels).loss.item() * (len(example.ids) - example.prompt_length))
    assert_close(found.nll, torch.tensor(losses, dtype=torch.float64), torch.float32)
    assert found.loss == pytest.approx(sum(losses) / int(found.tokens.sum()), rel=1e-5)
    assert not found.right.any()


def test_right_is_what_generation_gives() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt = tokenizer("abc", return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=6, do_sample=False, eos_token_id=[])[0].tolist()
    example = completions.EncodedExample(generated, 3, len(generated))
    spoiled = completions.EncodedExample([*generated[:-1], (generated[-1] + 1) % 320], 3, len(generated))
    assert completion_scores(model, [example, spoiled]).right.tolist() == [True, False]
    assert completion_scores(model, [example, spoiled], max_length=8).right.tolist() == [True, True]


def test_bad_input() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with pytest.raises(LokiError, match="no examples"):
        completion_scores(model, [])
    with pytest.raises(LokiError, match="prompt of 5 tokens, and the limit is 4"):
        completion_scores(model, [encode_example(tokenizer, "abcde", "f")], max_length=4)
    with pytest.raises(LokiError, match="nothing can be predicted"):
        encode_example(tokenizer, "", "f")
