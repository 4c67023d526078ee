"""Texts that a model writes itself: calibration data for a model whose own is not at hand.

Drawn from the model's own distribution, they are of the kinds that it was trained on. A model with a chat template
begins with a user's turn, and so writes both the question and the answer (Magpie, arXiv 2406.08464); a base model
begins with nothing. What they are good for was measured for second moments (`benchmarks/README.md`).
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.artefacts.differences import changes
from loki.calibration.settings import OwnTextSettings
from loki.calibration.text_records import beginning
from loki.data.chat import ChatTemplate
from loki.data.fitting import length_within
from loki.data.records import Conversation
from loki.errors import LokiError
from loki.files import atomic_file, protect_inputs, refuse_existing_file
from loki.models.model_directory import AnyModel, ModelDirectory
from loki.ranks import pick_device

_MARK = "\ue000"  # private use: no template has it


def write_own_texts(
    model: AnyModel,
    output: Path,
    settings: OwnTextSettings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Let a model write texts, and write them to a JSONL file of `{"text": ...}`.

    What an interrupted call has written stands in `<output>.partial`; the same call again goes on from there, and ends
    with the same texts.

    Args:
        model: directory or hub id.
        output: the file to write.
        settings: how; None takes the defaults.
        overwrite: replace the output, or what an interrupted call with other settings has written.
        progress: where to show how far it has come.

    Returns:
        The number of texts.

    Raises:
        LokiError: for a model that cannot be loaded, a length that holds nothing but how a text begins, a chat template
            that refuses what a user says, and files that are in the way.
    """
    settings = settings or OwnTextSettings()
    refuse_existing_file(output, overwrite=overwrite)
    protect_inputs(output, model)
    source = ModelDirectory.of(model, trust_remote_code=settings.trust_remote_code)
    loaded = source.load(dtype=settings.dtype, device=pick_device(settings.device))
    start = first_tokens(source.tokenizer)
    length = length_within(loaded.config, settings.length)
    if length <= len(start):
        raise LokiError(f"a text of {length} tokens holds only the {len(start)} that it begins with: raise --length")
    identity = {**asdict(settings), "model": source.fingerprint}
    del identity["device"]
    partial = output.with_name(f"{output.name}.partial")
    texts = _written(partial, identity, overwrite=overwrite)
    batches = -(-settings.tokens // (length * settings.batch_size))
    done = len(texts) // settings.batch_size
    task = progress.add_task("Writing", total=batches, completed=done) if progress else None
    for number in range(done, batches):
        seed = (settings.seed << 32) + number  # no batch of one seed is one of another
        texts += write_batch(loaded, source.tokenizer, start, settings.batch_size, length, seed)
        _write(partial, [{"identity": identity}, *({"text": text} for text in texts)])
        if progress and task is not None:
            progress.advance(task)
    _write(output, [{"text": text} for text in texts])
    partial.unlink(missing_ok=True)
    return len(texts)


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a text begins with: a dialogue up to where the user's first words stand, or the start token alone.

    Raises:
        LokiError: if the tokenizer has no start token, or its chat template refuses what a user says.
    """
    bos = tokenizer.bos_token_id
    start: int | None = tokenizer.eos_token_id if bos is None else bos
    if start is None:
        raise LokiError("the tokenizer has no token that a text begins with: set bos_token or eos_token")
    if tokenizer.chat_template is None:
        return [start]
    template = ChatTemplate(tokenizer)
    asked = template.fitted(Conversation([{"role": "user", "content": _MARK}], tools=[], trained=[]))
    before, mark, _ = template.render(asked.messages, asked).partition(_MARK)
    if not mark:
        return [start]
    ids: list[int] = tokenizer(before, add_special_tokens=False)["input_ids"]
    return ids if ids[:1] == [start] else beginning(tokenizer) + ids


@torch.no_grad()
def write_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, start: list[int], count: int, length: int, seed: int
) -> list[str]:
    """`count` texts of `length` tokens, drawn at temperature 1 from all tokens; they go on after an end of sequence."""
    given = torch.tensor([start] * count, device=model.device)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        ids = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            repetition_penalty=1.0,
            max_new_tokens=length - len(start),
            eos_token_id=[],
            pad_token_id=start[0],
        )
    # Who reads the text puts there again what the tokenizer puts before a text.
    skipped = len(beginning(tokenizer))
    return [str(tokenizer.decode(one[skipped:], clean_up_tokenization_spaces=False)) for one in ids.tolist()]


def _written(partial: Path, identity: dict[str, Any], *, overwrite: bool) -> list[str]:
    """What an interrupted call has written."""
    if not partial.is_file():
        return []
    try:
        head, *rest = [json.loads(line) for line in partial.read_text(encoding="utf-8").splitlines()]
        different = changes(head["identity"], identity)
        if not different:
            return [record["text"] for record in rest]
    except (ValueError, LookupError, TypeError):
        different = "it is damaged"
    if not overwrite:
        raise LokiError(
            f"{partial} holds texts that were written with other settings ({different}): repeat its command to go on, "
            "or pass --overwrite to discard them"
        )
    return []


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
