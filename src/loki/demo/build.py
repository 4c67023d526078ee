"""Trains the tiny world's model, which is shipped in `loki/demo/weights`: `python -m loki.demo.build [DIRECTORY]`.

Takes 10 to 15 minutes on one core.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from loki.demo.tokenizer import MAX_LENGTH, world_tokenizer
from loki.demo.world import ARITHMETIC, COMPARING, PEOPLE, SEQUENCES, World, tiny_world
from loki.errors import CheckFailed
from loki.files import atomic_directory
from loki.metrics.accuracy import accuracy_by_family, collate, encode_question

WEIGHTS = Path(__file__).parent / "weights"

SEED = 0
STEPS = 2400
WARMUP = 0.04  # of all steps
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.6
QUESTIONS_PER_STEP = {PEOPLE: 32, ARITHMETIC: 128, COMPARING: 64, SEQUENCES: 32}
REQUIRED_ACCURACY = 0.95


def build(directory: Path = WEIGHTS, steps: int = STEPS) -> dict[str, float]:
    """Train the model and save it with its tokenizer as an ordinary model directory, replacing what is there.

    Returns:
        Accuracy by family, on `World.asked`.

    Raises:
        CheckFailed: if a family stays below `REQUIRED_ACCURACY`; nothing is saved then.
    """
    torch.manual_seed(SEED)
    world, tokenizer = tiny_world(), world_tokenizer()
    model = LlamaForCausalLM(world_config(tokenizer))
    _train(model, tokenizer, world, steps)
    accuracy = accuracy_by_family(model, tokenizer, world.old)
    if min(accuracy.values()) < REQUIRED_ACCURACY:
        raise CheckFailed(f"accuracy {accuracy} is below {REQUIRED_ACCURACY}: train for more than {steps} steps")
    with atomic_directory(directory, overwrite=True) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return accuracy


def world_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """A Llama of 4 layers x 128, about 1.1 million parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, world: World, steps: int) -> None:
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    plain = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARMUP, cycle_momentum=False
    )
    batches = _batches(tokenizer, world)
    for _ in track(range(steps), description="training the tiny world", console=Console(stderr=True)):
        input_ids, answer_mask = next(batches)
        logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
        asked = answer_mask[:, 1:]
        loss = cross_entropy(logits[asked], input_ids[:, 1:][asked])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def _batches(tokenizer: PreTrainedTokenizerBase, world: World) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches with a fixed number of questions of every family."""
    chance = random.Random(SEED)
    encoded = {
        family: [encode_question(tokenizer, question) for question in questions]
        for family, questions in world.trained.items()
    }
    while True:
        batch = [
            one for family, count in QUESTIONS_PER_STEP.items() for one in chance.choices(encoded[family], k=count)
        ]
        yield collate(batch, tokenizer.pad_token_id)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS
    Console().print(build(target), f"saved in {target}")
