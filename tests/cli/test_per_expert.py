"""`loki analyse --per-expert`: what `loki.attribute` finds, in the file; interrupted, added to, joined, inspected."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import loki
from loki.analysis.batch_computer import BatchComputer
from loki.artefacts.expert_scores import NAME
from loki.kva.settings import Definition
from tests.analysis.calibration_files import write_prompts
from tests.cli.running import Shell
from tests.tiny_models import save_tiny_model

COUNT = 11


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("mixture") / "model", "qwen3_moe")


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    monkeypatch.chdir(tmp_path)
    return write_prompts(tmp_path / "prompts.jsonl", COUNT)


def analyse(shell: Shell, model: Path, output: str, *more: object) -> str:
    found = shell.done(
        "analyse", model, "--data", "prompts.jsonl", "--output", output, "--per-expert", "--batch-size", 2, *more
    )
    return found.out


def refused(shell: Shell, *words: object) -> str:
    outcome = shell(*words)
    assert outcome.code == 2, outcome
    return outcome.err


def contents(path: str) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path) as file:
        return file["dataset"][:], file[NAME][:]


@pytest.mark.parametrize("definition", list(Definition))
def test_the_file_holds_what_a_model_in_hand_gives(
    shell: Shell, mixture: Path, prompts: list[list[int]], definition: Definition
) -> None:
    analyse(shell, mixture, "scores.h5", "--definition", definition)
    scores, experts = contents("scores.h5")
    model = AutoModelForCausalLM.from_pretrained(mixture)
    assert experts.shape == (COUNT, 3, 4, 32)
    for place, prompt in enumerate(prompts):
        (found,) = loki.attribute(model, prompt, definition=definition, per_expert=True)
        assert found.experts is not None
        expected = torch.stack([found.experts[layer] for layer in range(3)])
        np.testing.assert_allclose(experts[place], expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))
        np.testing.assert_allclose(scores[place], found.scores, rtol=1e-3, atol=1e-6 * float(found.scores.abs().max()))
    inspected = shell.done("inspect", "scores.h5").out
    assert "Experts by layer" in inspected and "of 4" in inspected


def test_interrupted_it_goes_on_to_the_same_bits(
    shell: Shell, mixture: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    analyse(shell, mixture, "whole.h5")
    compute, done = BatchComputer._compute, []

    def interrupted(self: BatchComputer, number: int) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(number)
        return compute(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(BatchComputer, "_compute", interrupted)
        arguments = ("--data", "prompts.jsonl", "--output", "again.h5", "--per-expert", "--batch-size", 2)
        assert shell("analyse", mixture, *arguments).code == 130
        problem = refused(shell, "analyse", mixture, *arguments[:4], "--batch-size", 2)
        assert "per_expert True and False" in problem
    analyse(shell, mixture, "again.h5")
    for found, expected in zip(contents("again.h5"), contents("whole.h5"), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_added_to_and_joined(shell: Shell, mixture: Path, prompts: list[list[int]]) -> None:
    analyse(shell, mixture, "whole.h5", "--memory-budget", "1GiB")
    lines = Path("prompts.jsonl").read_text().splitlines(keepends=True)
    Path("prompts.jsonl").write_text("".join(lines[:4]))
    analyse(shell, mixture, "grown.h5", "--memory-budget", "1GiB")
    Path("prompts.jsonl").write_text("".join(lines))
    analyse(shell, mixture, "grown.h5", "--memory-budget", "1GiB", "--write-mode", "a")
    _, grown = contents("grown.h5")
    _, whole = contents("whole.h5")
    np.testing.assert_allclose(grown, whole, rtol=1e-3, atol=1e-6 * float(np.abs(whole).max()))
    write_prompts(Path("others.jsonl"), 14, first=COUNT)
    shell.done("analyse", mixture, "--data", "others.jsonl", "--output", "others.h5", "--per-expert")
    shell.done("merge", "whole.h5", "others.h5", "--output", "all.h5")
    for joined, first, rest in zip(contents("all.h5"), contents("whole.h5"), contents("others.h5"), strict=True):
        np.testing.assert_array_equal(joined, np.concatenate([first, rest]))
    shell.done("analyse", mixture, "--data", "others.jsonl", "--output", "plain.h5")
    problem = refused(shell, "merge", "whole.h5", "plain.h5", "--output", "mixed.h5")
    assert "per_expert True and False" in problem


def test_refusals(shell: Shell, llama_dir: Path, mixture: Path, prompts: list[list[int]]) -> None:
    arguments = ("--data", "prompts.jsonl", "--output", "out", "--per-expert")
    assert "llama model" in refused(shell, "analyse", llama_dir, *arguments)
    for more in (("--no-log",), ("--absolute",), ("--engine", "captum")):
        assert "--per-expert" in refused(shell, "analyse", mixture, *arguments, *more)
    assert {path.name for path in Path.cwd().iterdir()} == {"prompts.jsonl"}
