"""What a model forgets while it learns invented facts: one cell per method, rate and seed, one JSON file per cell.

    python benchmarks/forgetting/grid.py MODEL --text TEXT --output CELLS --method rows --rate 3e-4 --seed 0
    python benchmarks/forgetting/grid.py MODEL --text TEXT --output CELLS --method rows --rate 3e-3 \
        --protect 0.5 --moments moments.safetensors --label "random rows, protect 0.5"
    python benchmarks/forgetting/tables.py CELLS

All facts are one batch: AdamW without weight decay, gradients clipped at 1, bfloat16 autocast over float32 weights. The
training stops at the first step at which the wanted part of the answers is exactly right. Damage is measured on windows
of a text that is used for nothing else. A cell that is there already is not run again.
"""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer
from facts import Fact, invented_facts, prompt
from hardware import hardware
from methods import METHODS, Choice
from torch import nn
from transformers import PreTrainedTokenizerBase

from loki.files import write_json
from loki.metrics.accuracy import Question, answers_right, collate, encode_question
from loki.metrics.text import text_divergence
from loki.models.loading import load_model, load_tokenizer

WINDOW = 128


def learn(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: list[Fact],
    *,
    rate: float,
    enough: float,
    max_steps: int,
    autocast: bool,
) -> tuple[int, float, float]:
    """Train until enough answers are right; number of steps, part of the answers right, and seconds."""
    questions = [Question("facts", prompt(fact.question), fact.answer) for fact in facts]
    input_ids, answers = collate([encode_question(tokenizer, question) for question in questions], 0)
    labels = input_ids.masked_fill(~answers, -100)[:, 1:]
    device = next(model.parameters()).device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    model.train()
    started = time.perf_counter()
    for step in range(max_steps + 1):
        with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
            logits = model(input_ids=input_ids.to(device), use_cache=False).logits[:, :-1].float()
        right = (logits.argmax(-1).cpu() == labels) | (labels == -100)
        accuracy = float(right.all(dim=1).float().mean())
        if accuracy >= enough or step == max_steps:
            break
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten().to(device)).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return step, accuracy, time.perf_counter() - started


def windows_of(text: Path, tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    """As many paragraphs as wanted that fill a window, from all over the text, cut to about one."""
    paragraphs = [line.strip() for line in text.read_text(encoding="utf-8").split("\n")]
    long = [line for line in paragraphs if len(tokenizer(line, verbose=False)["input_ids"]) >= WINDOW]
    chosen = long[:: max(1, len(long) // count)][:count]
    return [tokenizer.decode(tokenizer(line, verbose=False)["input_ids"][: WINDOW - 1]) for line in chosen]


def main(
    model: Annotated[str, typer.Argument(help="Base model directory.")],
    text: Annotated[Path, typer.Option("--text", help="Text file on which damage is measured.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the cells.")],
    method: Annotated[str, typer.Option("--method", help=f"One of {', '.join(METHODS)}.")],
    rate: Annotated[float, typer.Option("--rate", help="Learning rate.")],
    seed: Annotated[int, typer.Option("--seed", help="Of facts and rows.")] = 0,
    label: Annotated[str, typer.Option("--label", help="The method's name in tables. Default: --method.")] = "",
    quota: Annotated[float, typer.Option("--quota", help="Percentage of the rows.")] = 30.0,
    positions: Annotated[Path | None, typer.Option("--positions", help="Selected rows. Default: drawn.")] = None,
    moments: Annotated[Path | None, typer.Option("--moments", help="Second moments, for --protect.")] = None,
    protect: Annotated[float | None, typer.Option("--protect", help="Share of protected input directions.")] = None,
    facts: Annotated[int, typer.Option("--facts", help="Number of facts.")] = 40,
    enough: Annotated[float, typer.Option("--enough", help="Stop at this part of right answers.")] = 0.975,
    max_steps: Annotated[int, typer.Option("--max-steps", help="Stop here at the latest.")] = 60,
    windows: Annotated[int, typer.Option("--windows", help="Windows of 128 tokens to measure damage on.")] = 24,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
) -> None:
    """Run one cell, unless it is there."""
    name = label or method
    cell = output / f"{Path(model).name}_{name}_{rate:g}_{seed}.json".replace(" ", "-").replace("/", "-")
    if cell.exists():
        print(f"{cell} is there")
        return
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(model)
    base = load_model(model, dtype="float32", device=device)
    tuned = load_model(model, dtype="float32", device=device)
    invented = invented_facts(facts, seed)
    trainable = METHODS[method](tuned, Choice(quota, seed, positions, moments, protect))
    steps, accuracy, seconds = learn(
        trainable, tokenizer, invented, rate=rate, enough=enough, max_steps=max_steps, autocast=True
    )
    trainable.eval()
    paraphrases = [Question("facts", prompt(fact.paraphrase), fact.answer) for fact in invented]
    damage = text_divergence(base, tuned, tokenizer, windows_of(text, tokenizer, windows), window=WINDOW)
    result = {
        "model": Path(model).name,
        "method": name,
        "rate": rate,
        "seed": seed,
        "quota": quota if method == "rows" else None,
        "protect": protect,
        "moments": moments.name if moments else None,
        "facts": facts,
        "trained": sum(parameter.numel() for parameter in trainable.parameters() if parameter.requires_grad),
        "steps": steps,
        "accuracy": accuracy,
        "paraphrases": sum(answers_right(tuned, tokenizer, paraphrases)) / facts,
        "kl": damage.kl_per_token,
        "loss_rise": damage.new.loss - damage.base.loss,
        "text": text.name,
        "windows": windows,
        "seconds": round(seconds, 1),
        "hardware": hardware(),
    }
    write_json(cell, result)
    print(f"{name}, rate {rate:g}: {steps} steps, right {accuracy:.3f}, KL {damage.kl_per_token:.4f}: {cell}")


if __name__ == "__main__":
    typer.run(main)
