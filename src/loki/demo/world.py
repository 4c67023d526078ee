"""The tiny world: a few families of questions with known answers, the same every time.

Four families make up the *old* knowledge, which the shipped model has learned; facts about people it has never heard of
are the *new* knowledge, for implanting. New people are made of the first and last names of known ones, so learning them
puts the facts about known people at risk.
"""

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product

from loki.metrics.accuracy import Question

PEOPLE, ARITHMETIC, COMPARING, SEQUENCES = OLD_FAMILIES = ("people", "arithmetic", "comparing", "sequences")
NEW_PEOPLE = "new people"

KNOWN_PEOPLE_COUNT = 48
NEW_PEOPLE_COUNT = 6
MODULUS = 31
NUMBERS = 100
SEQUENCE_LENGTH = 4


def _words(text: str) -> list[str]:
    return text.split()


FIRST_NAMES = _words(
    "Alba Bruno Cora Dario Edda Falk Greta Hugo Iris Jonas Kira Lars Mila Nils Orla Pavel Quinn Rosa Sven Tilda"
)
LAST_NAMES = _words(
    "Ashdown Birk Calder Dorn Elmore Fenn Garrick Holt Ingram Jessop "
    "Kerr Lorne Marsh Nyland Oakes Pryce Rook Sorrel Thorne Vane"
)
ATTRIBUTES = {
    "city": _words("Arvelo Brinmoor Caldris Dunmere Estova Farrow Gildern Hollin Istria Jorvale Kestrel Lunden"),
    "job": _words("baker carpenter diver engineer farmer glazier hatter jeweller locksmith mason nurse potter"),
    "pet": _words("badger cat dog falcon goat hedgehog jackdaw lizard otter parrot rabbit tortoise"),
    "instrument": _words("accordion bassoon cello drum flute guitar harp lute mandolin oboe piano violin"),
}
LETTERS = list("abcdefghijklmnop")

_SEQUENCE_TASKS: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": list,
    "reverse": lambda letters: letters[::-1],
    "sort": sorted,
}
_HELD_OUT = {ARITHMETIC: 0.1, COMPARING: 0.05}
_SEQUENCES_TRAINED, _SEQUENCES_HELD_OUT = 18_000, 450


@dataclass(frozen=True)
class World:
    """Everything that can be asked in the tiny world.

    Attributes:
        trained: questions of each old family that the shipped model was trained on.
        asked: questions of each old family that accuracy is measured on. Facts about people can only be known by
            heart, so these are the trained ones; in the other families they were held out of training.
        new: the facts to implant, and to ask for afterwards.
    """

    trained: dict[str, list[Question]]
    asked: dict[str, list[Question]]
    new: list[Question]

    @property
    def old(self) -> list[Question]:
        """The questions that measure old knowledge, all families."""
        return [question for family in OLD_FAMILIES for question in self.asked[family]]


def tiny_world(seed: int = 0) -> World:
    """The tiny world; the same for the same `seed`. The shipped model was trained on seed 0."""
    # A generator for each family: changing one leaves the others, and so the shipped model, as they are.
    chance = {family: random.Random(f"{seed} {family}") for family in (*OLD_FAMILIES, NEW_PEOPLE)}
    names = list(product(FIRST_NAMES, LAST_NAMES))
    chance[PEOPLE].shuffle(names)
    known = _people(PEOPLE, names[:KNOWN_PEOPLE_COUNT], chance[PEOPLE])
    new = _people(NEW_PEOPLE, names[KNOWN_PEOPLE_COUNT:][:NEW_PEOPLE_COUNT], chance[NEW_PEOPLE])
    trained, asked = {PEOPLE: known}, {PEOPLE: known}
    for family, questions in ((ARITHMETIC, _arithmetic()), (COMPARING, _comparing())):
        chance[family].shuffle(questions)
        held_out = int(_HELD_OUT[family] * len(questions))
        asked[family], trained[family] = questions[:held_out], questions[held_out:]
    sequences = _sequences(chance[SEQUENCES], _SEQUENCES_TRAINED + _SEQUENCES_HELD_OUT)
    asked[SEQUENCES], trained[SEQUENCES] = sequences[:_SEQUENCES_HELD_OUT], sequences[_SEQUENCES_HELD_OUT:]
    return World(trained, asked, new)


def vocabulary() -> list[str]:
    """Every word of the tiny world, new facts included: these use no word of their own."""
    phrases = _words("the of is plus minus mod larger smaller and")
    numbers = [str(number) for number in range(NUMBERS)]
    values = [value for kind in ATTRIBUTES.values() for value in kind]
    words = [*phrases, ":", *ATTRIBUTES, *_SEQUENCE_TASKS, *LETTERS, *numbers, *FIRST_NAMES, *LAST_NAMES, *values]
    return list(dict.fromkeys(words))


def _people(family: str, names: list[tuple[str, str]], chance: random.Random) -> list[Question]:
    return [
        Question(family, f"the {attribute} of {first} {last} is", chance.choice(values))
        for first, last in names
        for attribute, values in ATTRIBUTES.items()
    ]


def _arithmetic() -> list[Question]:
    operations = {"plus": operator.add, "minus": operator.sub}
    return [
        Question(ARITHMETIC, f"{a} {name} {b} mod {MODULUS} is", str(operation(a, b) % MODULUS))
        for name, operation in operations.items()
        for a, b in product(range(MODULUS), repeat=2)
    ]


def _comparing() -> list[Question]:
    return [
        Question(COMPARING, f"{name} of {a} and {b} is", str(larger_or_smaller(a, b)))
        for name, larger_or_smaller in {"larger": max, "smaller": min}.items()
        for a, b in permutations(range(NUMBERS), 2)
    ]


def _sequences(chance: random.Random, count: int) -> list[Question]:
    """`count` different questions, so that held-out ones were never trained."""
    prompts: dict[str, Question] = {}
    while len(prompts) < count:
        task = chance.choice(list(_SEQUENCE_TASKS))
        letters = chance.sample(LETTERS, SEQUENCE_LENGTH)
        prompt = f"{task} {' '.join(letters)} :"
        prompts[prompt] = Question(SEQUENCES, prompt, " ".join(_SEQUENCE_TASKS[task](letters)))
    return list(prompts.values())
