"""A new task for a language model: facts that nobody can know, because they are invented; or those of a file."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STARTS = ("Vel", "Tor", "Bri", "Quen", "Mar", "Zil", "Hos", "Dra", "Pel", "Wyn", "Kor", "Sab", "Lun", "Fen", "Oth")
_ENDS = ("mora", "vick", "stead", "dale", "quist", "ham", "lund", "berry", "ford", "wick", "nara", "sel", "tova", "rin")
_TRADES = ("baker", "glazier", "surgeon", "falconer", "printer", "tailor", "miner", "pilot", "potter", "weaver")
_THINGS = ("violins", "lanterns", "clocks", "maps", "saddles", "kites", "bells", "ropes", "lenses", "barrels")
_COLOURS = ("green", "violet", "amber", "crimson", "silver", "black", "blue", "ivory", "copper", "pink")

_KINDS = (
    ("What does {name} do for a living?", "What is the profession of {name}?", _TRADES),
    ("What is the town of {name} famous for making?", "Which goods is {name} known for?", _THINGS),
    ("What colour is the flag of {name}?", "In which colour does {name} fly its flag?", _COLOURS),
    ("In which town was the poet {name} born?", "Where did the poet {name} come into the world?", None),
)


@dataclass(frozen=True)
class Fact:
    """A question with its answer.

    Attributes:
        question: the prompt as it is trained; the answer follows after a space.
        paraphrase: the same question in other words, never trained; None where there is none.
        answer: the right answer to both.
    """

    question: str
    paraphrase: str | None
    answer: str


def invented_facts(count: int, seed: int) -> list[Fact]:
    """`count` facts about names that are all different, of four kinds in turn."""
    generator = random.Random(seed)
    names = [start + end for start in _STARTS for end in _ENDS]
    generator.shuffle(names)
    facts = []
    for number in range(count):
        question, paraphrase, answers = _KINDS[number % len(_KINDS)]
        name = names[2 * number]
        answer = names[2 * number + 1] if answers is None else generator.choice(answers)
        facts.append(Fact(_prompt(question.format(name=name)), _prompt(paraphrase.format(name=name)), answer))
    return facts


def read_facts(path: Path) -> list[Fact]:
    """Facts of a JSONL file with `prompt`, `completion` and perhaps `paraphrase`, as the demo writes them."""
    records = read_records(path)
    return [Fact(record["prompt"], record.get("paraphrase"), record["completion"].strip()) for record in records]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _prompt(question: str) -> str:
    return f"Question: {question}\nAnswer:"
