from loki.demo.tokenizer import UNKNOWN, world_tokenizer
from loki.demo.world import ATTRIBUTES, MODULUS, NEW_PEOPLE, NEW_PEOPLE_COUNT, OLD_FAMILIES, tiny_world

WORLD = tiny_world()


def test_is_the_same_every_time_and_differs_by_seed() -> None:
    assert tiny_world() == WORLD
    assert tiny_world(seed=1).new != WORLD.new


def test_no_prompt_occurs_twice() -> None:
    for questions in [*WORLD.trained.values(), *WORLD.asked.values(), WORLD.new]:
        assert len({question.prompt for question in questions}) == len(questions)


def test_what_is_asked_was_held_out_except_facts() -> None:
    for family in OLD_FAMILIES:
        trained = {question.prompt for question in WORLD.trained[family]}
        asked = {question.prompt for question in WORLD.asked[family]}
        assert asked <= trained if family == "people" else not asked & trained


def test_new_people_are_new_but_their_names_are_not() -> None:
    known, new = ({" ".join(question.prompt.split()[3:5]) for question in group} for group in (WORLD.old, WORLD.new))
    assert not known & new
    assert len(new) == NEW_PEOPLE_COUNT
    assert len(WORLD.new) == NEW_PEOPLE_COUNT * len(ATTRIBUTES)
    assert {question.family for question in WORLD.new} == {NEW_PEOPLE}


def test_answers_are_true() -> None:
    for question in [*WORLD.trained["arithmetic"], *WORLD.asked["arithmetic"]]:
        a, operation, b, *_ = question.prompt.split()
        assert int(question.answer) == (int(a) + int(b) if operation == "plus" else int(a) - int(b)) % MODULUS
    for question in WORLD.asked["comparing"]:
        which, _, a, _, b, _ = question.prompt.split()
        assert int(question.answer) == (max if which == "larger" else min)(int(a), int(b))
    for question in WORLD.asked["sequences"]:
        task, *letters, _ = question.prompt.split()
        expected = {"copy": letters, "reverse": letters[::-1], "sort": sorted(letters)}[task]
        assert question.answer.split() == expected


def test_tokenizer_knows_every_word_and_gives_the_text_back() -> None:
    tokenizer = world_tokenizer()
    for question in [*WORLD.old, *WORLD.new]:
        text = f"{question.prompt} {question.answer}"
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.convert_tokens_to_ids(UNKNOWN) not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
