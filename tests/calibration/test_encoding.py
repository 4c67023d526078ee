import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from loki.calibration.encoding import encode_records
from loki.calibration.records import Record
from loki.calibration.samples import Sample
from loki.errors import LokiError
from tests.tiny_models import VOCAB, tiny_tokenizer


def encode(record: Record, *, max_positions: int | None = 16, vocab_size: int = VOCAB) -> Sample:
    (sample,) = encode_records([record], tiny_tokenizer(), max_positions=max_positions, vocab_size=vocab_size)
    return sample


def test_what_a_record_becomes() -> None:
    assert encode(Record("a/1", "law", [5, 6], 9)) == Sample("a/1", "law", [5, 6], 9)
    assert encode(Record("1", "", [5])).target is None


def test_target_text_means_its_first_token() -> None:
    first = tiny_tokenizer()("yes")["input_ids"][0]
    assert encode(Record("1", "", "say", "yes")).target == first


def test_prompt_as_long_as_the_model_takes() -> None:
    assert len(encode(Record("1", "", [5] * 16)).input_ids) == 16
    assert len(encode(Record("1", "", [5] * 1000), max_positions=None).input_ids) == 1000


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (Record("q/7", "", [5] * 17), "17 tokens.* 16 positions"),
        (Record("q/7", "", [5, 320]), r"token id 320 .*\(0 to 319\)"),
        (Record("q/7", "", [-1]), "token id -1 .*vocabulary"),
        (Record("q/7", "", ""), "the prompt is empty"),
        (Record("q/7", "", [5], 320), r"target 320 .*\(0 to 319\)"),
        (Record("q/7", "", [5], -1), "target -1 .*vocabulary"),
        (Record("q/7", "", [5], ""), "target '' .*vocabulary"),
    ],
)
def test_unusable_records_are_named(record: Record, problem: str) -> None:
    with pytest.raises(LokiError, match=f"sample q/7: .*{problem}"):
        encode(record)


def test_tokenizer_with_more_tokens_than_the_model() -> None:
    with pytest.raises(LokiError, match=r"token id 79 .*\(0 to 9\)"):
        encode(Record("1", "", "hi"), vocab_size=10)
    with pytest.raises(LokiError, match=r"target 'hi' .*vocabulary"):
        encode(Record("1", "", [5], "hi"), vocab_size=10)


def test_target_that_the_tokenizer_does_not_know() -> None:
    words = Tokenizer(WordLevel({"<unk>": 0, "yes": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    records = [Record("1", "", [1], "yes"), Record("2", "", [1], "<unk>")]
    assert [s.target for s in encode_records(records, tokenizer, max_positions=4, vocab_size=2)] == [1, 0]
    with pytest.raises(LokiError, match=r"sample 3: target 'maybe' .*vocabulary"):
        encode_records([Record("3", "", [1], "maybe")], tokenizer, max_positions=4, vocab_size=2)
