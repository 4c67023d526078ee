import json
from pathlib import Path

import pytest

from loki.calibration.sources import load_calibration
from loki.demo.data import CALIBRATION_PER_FAMILY, write_calibration, write_facts
from loki.demo.tokenizer import world_tokenizer
from loki.demo.world import OLD_FAMILIES, tiny_world
from loki.errors import LokiError

WORLD = tiny_world()


def test_calibration_is_trained_questions_with_the_next_word_of_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "calibration.jsonl"
    write_calibration(path, WORLD)
    tokenizer = world_tokenizer()
    samples = load_calibration(str(path), tokenizer, max_positions=64, vocab_size=len(tokenizer)).samples
    texts = {
        family: {f"{question.prompt} {question.answer}" for question in questions}
        for family, questions in WORLD.trained.items()
    }
    assert [sample.subject for sample in samples] == [f for f in OLD_FAMILIES for _ in range(CALIBRATION_PER_FAMILY)]
    for sample in samples:
        assert sample.target is not None
        text = tokenizer.decode([*sample.input_ids[1:], sample.target])
        assert any(whole == text or whole.startswith(f"{text} ") for whole in texts[sample.subject])
    given = {len(sample.input_ids) for sample in samples if sample.subject == "sequences"}
    assert len(given) == 4  # every step of a sequence of 4 letters is analysed


def test_facts_are_prompts_and_completions(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    write_facts(path, WORLD.new)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["prompt"] + record["completion"] for record in records] == [
        f"{fact.prompt} {fact.answer}" for fact in WORLD.new
    ]


def test_existing_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text("mine")
    with pytest.raises(LokiError, match="exists already"):
        write_facts(path, WORLD.new)
    with pytest.raises(LokiError, match="exists already"):
        write_calibration(path, WORLD)
    assert path.read_text() == "mine"
