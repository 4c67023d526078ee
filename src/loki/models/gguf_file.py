"""A `.gguf` file as a base model: dequantised by Transformers, once, into an ordinary directory in the cache."""

import hashlib
import logging
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from loki.errors import LokiError
from loki.files import atomic_directory, cache_folder
from loki.inputs import reading

_WORD = re.compile("[▁Ġ][A-Za-z]{2,}")  # as SentencePiece and byte-level BPE write a word with the space before it
_CHECKED_WORDS = 512
_LOGGER = logging.getLogger(__name__)


def dequantised(file: Path) -> Path:
    """The directory of a `.gguf` file's model in float32, in which every value of the file is exact.

    It is made on first use and kept in the cache; a file that has changed since is dequantised anew. What is
    quantised stays as coarse as it was: where the unquantised model can be had, its rows are the better ones.

    Args:
        file: made by llama.cpp, of a model whose layout Transformers knows.

    Raises:
        LokiError: if the package gguf is missing, the file is damaged or Transformers cannot read its model.
    """
    stat = file.stat()
    key = hashlib.sha256(repr((str(file.resolve()), stat.st_size, stat.st_mtime_ns)).encode()).hexdigest()[:16]
    target = cache_folder() / "gguf" / f"{file.stem}-{key}"
    if target.is_dir():
        return target
    if find_spec("gguf") is None:
        raise LokiError(f"model {file} needs the package gguf: install it (`pip install gguf`)")
    _LOGGER.warning("%s is dequantised to float32 (once): %s", file.name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    advice = "fetch or convert it again, or use the model that it was made from"
    # Another process may make the same one meanwhile: the later takes the place of the earlier, which is no different.
    with reading("GGUF file", file, advice=advice), atomic_directory(target, overwrite=True) as temporary:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, **_unpacked()
        )
        if getattr(model, "hf_quantizer", None) is not None:  # it still goes for quantised
            model.hf_quantizer = None
            del model.config.quantization_config
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        _check_tokenizer(tokenizer, file)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return target


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Check that the tokenizer splits words as its vocabulary says: some releases of Transformers lose the merges.

    Transformers 5.17 makes one out of Gemma 3's file that splits "quick" in two and begins without <bos>; a model
    would be analysed and trained on tokens that it has never seen so.

    Raises:
        LokiError: if most words of the vocabulary are split, or the start token is missing that the file asks for.
    """
    from gguf import GGUFReader

    advice = f"use another release of Transformers than {transformers.__version__}, or the model that it was made from"
    words = {token: index for token, index in tokenizer.get_vocab().items() if _WORD.fullmatch(token)}
    common = sorted(words, key=lambda token: words[token])[:_CHECKED_WORDS]  # tokens stand in order of their frequency
    split = [
        token for token in common if tokenizer(f" {token[1:]}", add_special_tokens=False)["input_ids"] != [words[token]]
    ]
    if len(split) > len(common) / 2:
        raise LokiError(f"GGUF file {file}: its tokenizer comes out broken (it splits {split[0][1:]!r}): {advice}")
    field = GGUFReader(file).get_field("tokenizer.ggml.add_bos_token")
    starts = field is not None and bool(field.contents())
    if starts and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        raise LokiError(f"GGUF file {file}: its tokenizer comes out without the start token that it asks for: {advice}")


def _unpacked() -> dict[str, Any]:
    """Later releases of Transformers would compute with the packed weights, where earlier ones always unpack them."""
    kind = getattr(transformers, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}
