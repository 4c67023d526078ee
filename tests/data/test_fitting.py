"""What is cut, split or left out at --max-length is counted; sources are mixed by their weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DataCollatorForSeq2Seq
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from loki.data.examples import load_training_data
from loki.data.fitting import fit_to_model
from loki.data.mixing import mixture
from loki.errors import LokiError
from tests.data.loading import LONG, fit, texts, write_records
from tests.tiny_models import tiny_tokenizer

RECORD = {"prompt": "abcde", "completion": "fghij"}  # 11 tokens with the end


def test_one_line_says_how_many_and_how_long(tmp_path: Path) -> None:
    data = fit(tmp_path, RECORD, {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""})
    assert str(data) == (
        "2 training examples, 14 tokens (median 11, 95% 11, longest 11); dropped 1 (with an empty completion)"
    )


@pytest.mark.parametrize(("max_length", "examples", "cut"), [(11, 1, 0), (10, 1, 1), (6, 1, 1)])
def test_cut_answers_are_counted(tmp_path: Path, max_length: int, examples: int, cut: int) -> None:
    data = fit(tmp_path, RECORD, max_length=max_length)
    assert (len(data.dataset), data.cut) == (examples, cut)
    assert data.ended == examples - cut
    assert all(len(row["input_ids"]) <= max_length for row in data.dataset)
    assert data.lengths == [11]


def test_answers_beyond_reach_are_dropped_and_counted(tmp_path: Path) -> None:
    data = fit(tmp_path, RECORD, {"prompt": "a", "completion": "b"}, max_length=5)
    assert texts(data) == [("a", "b</s>")]
    assert data.dropped == {"whose answer begins beyond --max-length 5": 1}
    assert data.origins == [f"{tmp_path / 'train.jsonl'}, line 2"]
    with pytest.raises(LokiError, match=r"of 1 \(1 .*--max-length 5\)"):
        fit(tmp_path, RECORD, max_length=5)


@settings(max_examples=25)
@given(st.text("abc", min_size=1, max_size=40), st.integers(2, 12))
def test_every_token_of_a_long_text_is_predicted_once(
    tmp_path_factory: pytest.TempPathFactory, text: str, max_length: int
) -> None:
    data = fit(tmp_path_factory.mktemp("text"), {"text": text}, max_length=max_length)
    predicted = [
        token
        for row in data.dataset
        for token, trained in zip(row["input_ids"][1:], row["completion_mask"][1:], strict=True)
        if trained
    ]
    tokens = tiny_tokenizer()(text)["input_ids"] + [1]
    assert predicted == tokens[1:]
    assert all(2 <= len(row["input_ids"]) <= max_length for row in data.dataset)


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    records = load_training_data(
        write_records(tmp_path / "a.jsonl", RECORD, {"input_ids": [1, 400], "labels": [1, 400]}), chat_template=False
    )
    with pytest.raises(LokiError, match=r"line 2: .* 400 .*\(0 to 319\)"):
        fit_to_model(records, tiny_tokenizer(), LONG, vocab_size=320)


def test_a_tokenizer_that_can_neither_pad_nor_end_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(LokiError, match=r"padding .*end token"):
        fit(tmp_path, RECORD, tokenizer=tokenizer)


def test_a_pad_token_that_is_the_end_of_text_does_not_mask_the_end_of_the_answer(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = list(fit(tmp_path, RECORD, {"prompt": "a", "completion": "b"}, tokenizer=tokenizer).dataset)
    labelled: list[dict[str, Any]] = [
        {
            "input_ids": row["input_ids"],
            "labels": [t if m else -100 for t, m in zip(row["input_ids"], row["completion_mask"], strict=True)],
        }
        for row in rows
    ]
    batches = [
        DataCollatorForSeq2Seq(tokenizer)([dict(row) for row in labelled]),
        DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)(labelled),
    ]
    for batch in batches:
        assert torch.equal(batch["labels"][0], torch.tensor([-100] * 5 + labelled[0]["labels"][5:]))
        assert batch["labels"][1].tolist().count(tokenizer.eos_token_id) == 1


def test_sources_are_mixed_by_their_weights(tmp_path: Path) -> None:
    paths = [
        write_records(tmp_path / f"{name}.jsonl", *[{"text": f"{name}{index}"} for index in range(count)])
        for name, count in (("a", 10), ("b", 30))
    ]

    def mixed(*weights: str, seed: int = 0) -> list[str]:
        given = [f"{path}{weight}" for path, weight in zip(paths, weights, strict=True)]
        records = load_training_data(given, chat_template=False)
        return [text for _, text in texts(fit_to_model(records, tiny_tokenizer(False), LONG, seed=seed))]

    assert len(mixed("", "")) == 40
    drawn = mixed(":1", ":1")
    assert [sum(text.startswith(name) for text in drawn) for name in "ab"] == [10, 10]
    assert len(set(drawn)) == 20
    assert mixed(":1", ":1") == drawn != mixed(":1", ":1", seed=1)
    assert [sum(text.startswith(name) for text in mixed(":0.1", ":0.9")) for name in "ab"] == [3, 30]
    with pytest.raises(LokiError, match=r"b\.jsonl .*no weight"):
        mixed(":1", "")
    with pytest.raises(LokiError, match=r"weight .*above 0"):
        mixed(":1", ":0")


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 100)), min_size=2, max_size=4),
    st.integers(0, 3),
)
def test_mixture(sources: list[tuple[int, float]], seed: int) -> None:
    of_examples = [index for index, (count, _) in enumerate(sources) for _ in range(count)]
    weights = [weight for _, weight in sources]
    drawn = mixture(of_examples, weights, seed)
    assert drawn == sorted(set(drawn))
    counts = [sum(of_examples[index] == source for index in drawn) for source in range(len(sources))]
    assert all(counts)
    assert any(count == size for count, (size, _) in zip(counts, sources, strict=True))  # nothing more could be drawn
    scale = min(size / weight for size, weight in sources)
    assert all(count == max(1, round(scale * weight)) for count, weight in zip(counts, weights, strict=True))
