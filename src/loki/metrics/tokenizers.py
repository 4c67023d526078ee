"""Whether two tokenizers are one: only then do two models predict the same things."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def same_tokenizer(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, texts: Sequence[str]) -> bool:
    """Whether both have the same vocabulary and start token, and split every one of `texts` in the same way."""
    if (first.get_vocab(), first.bos_token_id, first.eos_token_id) != (
        second.get_vocab(),
        second.bos_token_id,
        second.eos_token_id,
    ):
        return False
    return all(
        first(text, add_special_tokens=False, verbose=False)["input_ids"]
        == second(text, add_special_tokens=False, verbose=False)["input_ids"]
        for text in texts
    )
