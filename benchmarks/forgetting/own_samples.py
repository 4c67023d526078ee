"""A text that a model writes itself, to measure second moments on: drawn from its own distribution.

    python benchmarks/forgetting/own_samples.py MODEL own.jsonl [--device cuda]

A model with a chat template begins with a user's turn, and so writes both the question and the answer (Magpie, arXiv
2406.08464); a base model begins with nothing.
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from damage import dialogue
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.files import atomic_file
from loki.models.loading import load_model, load_tokenizer

_MARK = "\ue000"


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a sample begins with: a dialogue up to where the user's first words stand, or the start token alone."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if tokenizer.chat_template is None:
        return [start]
    before, _, _ = dialogue(tokenizer, [{"role": "user", "content": _MARK}]).partition(_MARK)
    return [start, *tokenizer(before, add_special_tokens=False)["input_ids"]]


@torch.no_grad()
def write_own(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, count: int, length: int, seed: int
) -> list[str]:
    """`count` texts of `length` tokens, drawn at temperature 1 from all tokens; they go on after an end of sequence."""
    torch.manual_seed(seed)
    start = first_tokens(tokenizer)
    given = torch.tensor([start] * count, device=model.device)
    ids = model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
        max_new_tokens=length - len(start), eos_token_id=[], pad_token_id=start[0],
    )  # fmt: skip
    # Who reads the text puts the start token there again, if the tokenizer does so.
    skipped = 1 if tokenizer("a")["input_ids"][0] == start[0] else 0
    return [str(tokenizer.decode(one[skipped:])) for one in ids.tolist()]


def main(
    model: Annotated[str, typer.Argument(help="Model directory.")],
    output: Annotated[Path, typer.Argument(help="JSONL to write.")],
    tokens: Annotated[int, typer.Option("--tokens", help="To draw, about.")] = 140_000,
    length: Annotated[int, typer.Option("--length", help="Tokens of a text.")] = 256,
    batch: Annotated[int, typer.Option("--batch", help="Texts at a time.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
) -> None:
    """Write texts of a model's own."""
    loaded, tokenizer = load_model(model, dtype="float32", device=device), load_tokenizer(model)
    texts: list[str] = []
    while len(texts) * length < tokens:
        texts += write_own(loaded, tokenizer, count=batch, length=length, seed=seed + len(texts))
    with atomic_file(output, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
