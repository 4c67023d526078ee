"""What a tuned model has lost: its predictions and answers beside the base's, on data that is used for nothing else."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from facts import read_facts, read_records
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.metrics.accuracy import Question, accuracy_by_family
from loki.metrics.completions import CompletionScores, completion_scores
from loki.metrics.text import text_divergence
from loki.models.logits import logits_at

_DIALOGUE = 512  # tokens of a dialogue at most
Examples = tuple[list[list[int]], list[list[int]]]
"""Token ids of every example, and which of them are its answer."""


class Remembered(nn.Module):
    """A model that is asked the same things again and again, and computes every answer once.

    Args:
        model: it must not change any more.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config, self.device = model.eval(), model.config, model.device
        self._answers: dict[bytes, Any] = {}

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        """What the model puts out for these ids."""
        key = input_ids.cpu().numpy().tobytes()
        if key not in self._answers:
            self._answers[key] = self.model(input_ids=input_ids, use_cache=use_cache)
        return self._answers[key]


@dataclass(frozen=True)
class Sources:
    """Where damage is measured.

    Attributes:
        texts: files of text by name: `.txt`, or `.jsonl` whose string values are joined.
        lambada: JSONL with `text`; the last word is asked for.
        piqa: JSONL with `goal`, `sol1`, `sol2` and `label`.
        chat: JSONL with `messages`: dialogues, measured whole in the model's chat template, as a text called `chat`.
        questions: old questions as `facts.read_facts` reads them, whose exact answers are counted.
        windows: windows of each text.
        window: tokens of a window.
        passages: number of LAMBADA's words; the first passages of at most `longest` tokens.
        mmlu: JSONL with `question`, `choices` and `answer`, an index: how far the distribution over the letters moves.
        choices: number of PIQA's questions, chosen in the same way.
        longest: tokens of a passage, or of a question with an ending, at most.
    """

    texts: dict[str, Path]
    lambada: Path | None = None
    piqa: Path | None = None
    chat: Path | None = None
    questions: Path | None = None
    mmlu: Path | None = None
    windows: int = 24
    window: int = 128
    passages: int = 160
    choices: int = 100
    longest: int = 128


class OldKnowledge:
    """Measures models against one base.

    Args:
        base: the model before training.
        tokenizer: of all models.
        sources: the data.
    """

    def __init__(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sources: Sources) -> None:
        self.base, self.tokenizer, self.sources = base, tokenizer, sources
        # On a GPU its predictions are sooner computed anew than there is memory for them.
        self.remembered = Remembered(base) if base.device.type == "cpu" else base.eval()
        self.windows = {
            name: windows_of(path, tokenizer, count=sources.windows, window=sources.window)
            for name, path in sources.texts.items()
        }
        if sources.chat:
            self.windows["chat"] = [dialogue(tokenizer, one["messages"]) for one in read_records(sources.chat)]
        self.lambada = _lambada(tokenizer, sources) if sources.lambada else None
        self.piqa, self.labels = _piqa(tokenizer, sources) if sources.piqa else (None, [])
        old = read_facts(sources.questions) if sources.questions else []
        self.mmlu = _mmlu(tokenizer, sources.mmlu) if sources.mmlu else None
        self.questions = [Question("old", fact.question, fact.answer) for fact in old]

    def measure(self, model: PreTrainedModel) -> dict[str, Any]:
        """Damage of a tuned model: KL and rise of the loss by text, and answers beside the base's."""
        found: dict[str, Any] = {}
        for name, windows in self.windows.items():
            divergence = text_divergence(
                self.remembered,  # type: ignore[arg-type]
                model,
                self.tokenizer,
                windows,
                window=self.sources.window if name in self.sources.texts else _DIALOGUE,
            )
            found[name] = {
                "kl": divergence.kl_per_token,
                "loss_rise": divergence.new.loss - divergence.base.loss,
                "base_loss": divergence.base.loss,
                "windows": len(windows),
            }
        return {"texts": found, "answers": self._answers(model), "base_answers": self._base_answers}

    @cached_property
    def _base_answers(self) -> dict[str, float]:
        return self._answers(self.base)

    @cached_property
    def _base_letters(self) -> torch.Tensor:
        assert self.mmlu is not None
        return letter_log_probabilities(self.base, self.mmlu)

    def _answers(self, model: PreTrainedModel) -> dict[str, float]:
        found = {}
        if self.lambada:
            scores = completion_scores(model, *self.lambada)
            found["lambada_accuracy"] = scores.accuracy
            found["lambada_logprob"] = -float(scores.nll.mean())
        if self.piqa:
            found["piqa_accuracy"] = _prefers(completion_scores(model, *self.piqa), self.labels)
        if self.mmlu:
            before = self._base_letters
            letters = before if model is self.base else letter_log_probabilities(model, self.mmlu)
            right = torch.tensor(self.mmlu.answers)
            found["mmlu_accuracy"] = float((letters.argmax(-1) == right).double().mean())
            found["mmlu_kl"] = float((before.exp() * (before - letters)).sum(-1).mean())
        if self.questions:
            found["old_accuracy"] = accuracy_by_family(model, self.tokenizer, self.questions)["old"]
        return found


def windows_of(path: Path, tokenizer: PreTrainedTokenizerBase, *, count: int, window: int) -> list[str]:
    """As many paragraphs as wanted that fill a window, from all over the text, cut to about one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".jsonl":
        lines = [" ".join(value for value in json.loads(line).values() if isinstance(value, str)) for line in lines]
    encoded = [tokenizer(line.strip(), add_special_tokens=False, verbose=False)["input_ids"] for line in lines]
    long = [ids for ids in encoded if len(ids) >= window]
    if len(long) < count:
        raise SystemExit(f"{path} has {len(long)} paragraphs of {window} tokens, not {count}")
    return [tokenizer.decode(ids[: window - 1]) for ids in long[:: len(long) // count][:count]]


def dialogue(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """Messages in the model's chat template, or line by line for a base model, which has none.

    Without the beginning-of-sequence token, which the tokenizer or every window puts there anyway.
    """
    if tokenizer.chat_template is None:
        return "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    return text.removeprefix(tokenizer.bos_token or "")


@dataclass(frozen=True)
class Choices:
    """Questions with four choices.

    Attributes:
        prompts: token ids of every question, which end before the letter.
        letters: token ids of the four letters.
        answers: index of every right answer.
    """

    prompts: list[list[int]]
    letters: list[int]
    answers: list[int]


@torch.no_grad()
def letter_log_probabilities(model: PreTrainedModel, choices: Choices) -> torch.Tensor:
    """`[N, 4]` float64: of every question's four letters, which are taken for all there is."""
    found = torch.zeros(len(choices.prompts), 4, dtype=torch.float64)
    order = sorted(range(len(choices.prompts)), key=lambda index: len(choices.prompts[index]))
    for start in range(0, len(order), 32):
        batch = order[start : start + 32]
        last = torch.tensor([len(choices.prompts[index]) - 1 for index in batch])
        # With causal attention, padding on the right cannot change what stands before it.
        input_ids = torch.zeros(len(batch), int(last.max()) + 1, dtype=torch.long)
        for row, index in enumerate(batch):
            input_ids[row, : last[row] + 1] = torch.tensor(choices.prompts[index])
        kept = last.unique()
        logits = logits_at(model, kept.to(model.device), input_ids=input_ids.to(model.device))
        at = torch.searchsorted(kept, last)
        found[batch] = logits[torch.arange(len(batch)), at][:, choices.letters].cpu().double().log_softmax(-1)
    return found


def _mmlu(tokenizer: PreTrainedTokenizerBase, path: Path) -> Choices:
    prompts, answers = [], []
    for record in read_records(path):
        options = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", record["choices"], strict=True))
        prompts.append(tokenizer(f"{record['question']}{options}\nAnswer:")["input_ids"])
        answers.append(record["answer"])
    letters = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][-1] for letter in "ABCD"]
    return Choices(prompts, letters, answers)


def _example(tokenizer: PreTrainedTokenizerBase, given: str, answer: str) -> tuple[list[int], list[int]]:
    before = tokenizer(given)["input_ids"]
    after = tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
    return [*before, *after], [0] * len(before) + [1] * len(after)


def _lambada(tokenizer: PreTrainedTokenizerBase, sources: Sources) -> Examples:
    assert sources.lambada is not None
    examples = []
    for record in read_records(sources.lambada):
        given, _, word = record["text"].rpartition(" ")
        example = _example(tokenizer, given, word)
        if len(example[0]) <= sources.longest:
            examples.append(example)
        if len(examples) == sources.passages:
            break
    return [ids for ids, _ in examples], [mask for _, mask in examples]


def _piqa(tokenizer: PreTrainedTokenizerBase, sources: Sources) -> tuple[Examples, list[int]]:
    assert sources.piqa is not None
    examples, labels = [], []
    for record in read_records(sources.piqa):
        given = f"Question: {record['goal']}\nAnswer:"
        pair = [_example(tokenizer, given, record[ending]) for ending in ("sol1", "sol2")]
        if max(len(ids) for ids, _ in pair) <= sources.longest:
            examples += pair
            labels.append(record["label"])
        if len(labels) == sources.choices:
            break
    return ([ids for ids, _ in examples], [mask for _, mask in examples]), labels


def _prefers(scores: CompletionScores, labels: list[int]) -> float:
    """Part of the questions whose right ending is the likelier one."""
    likelier = scores.nll.view(-1, 2).argmin(dim=1)
    return float((likelier == torch.tensor(labels)).double().mean())
