"""A new task for a language model: facts that nobody can know, because they are invented."""

import random
from dataclasses import dataclass

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
    """An invented fact.

    Attributes:
        question: as it is trained.
        paraphrase: the same question in other words, never trained.
        answer: the right answer to both.
    """

    question: str
    paraphrase: str
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
        facts.append(Fact(question.format(name=name), paraphrase.format(name=name), answer))
    return facts


def prompt(question: str) -> str:
    """How a question is put to the model; the answer follows after a space."""
    return f"Question: {question}\nAnswer:"
