"""The tiny world's tokenizer: one token per word."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from loki.demo.world import vocabulary

BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
MAX_LENGTH = 64


def world_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer for the tiny world; it puts `<s>` before every text."""
    tokens = [PAD, BOS, EOS, UNKNOWN, *vocabulary()]
    backend = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, tokens.index(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=MAX_LENGTH,
    )
