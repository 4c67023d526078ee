import json
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.running import Shell
from tests.evaluation.models import MARKS_BEFORE, harness_results, save_changed

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def damaged(llama_dir: Path, tmp_path: Path) -> Path:
    return save_changed(llama_dir, tmp_path / "damaged", DOWN, 1.0)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Some words to be predicted, again and again. " * 60)
    return path


def test_a_model_and_itself_pass(shell: Shell, llama_dir: Path, text: Path) -> None:
    outcome = shell("compare", llama_dir, llama_dir, "--text", text, "--show-flips", 3)
    assert outcome.code == 0, outcome.err
    assert "PASS" in outcome.out
    assert "same model" in outcome.out


def test_several_models_side_by_side(shell: Shell, llama_dir: Path, damaged: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "comparison.json"
    outcome = shell("compare", llama_dir, llama_dir, damaged, "--text", text, "--markdown", "--output", output)
    assert outcome.code == 1, outcome.err
    assert f"|  | {llama_dir} | {llama_dir} | {damaged} |" in outcome.out
    assert "| verdict |  | PASS | FAIL |" in outcome.out
    saved = json.loads(output.read_text())["comparisons"]
    assert [one["verdict"]["outcome"] for one in saved] == ["PASS", "FAIL"]
    assert saved[1]["texts"][0]["kl"]["kl"] > 0.1


def test_json_stands_alone_on_standard_output(shell: Shell, llama_dir: Path, damaged: Path, text: Path) -> None:
    outcome = shell("compare", llama_dir, damaged, "--text", text, "--json")
    values = json.loads(outcome.out)
    assert values["exit_code"] == outcome.code == 1
    assert values["comparisons"][0]["new"] == str(damaged)


def test_latex(shell: Shell, llama_dir: Path, text: Path) -> None:
    out = shell.done("compare", llama_dir, llama_dir, "--text", text, "--latex").out
    assert r"\begin{tabular}{lrr}" in out
    assert r"KL(base \textbar{}\textbar{} new)" in out


def test_too_few_items_are_inconclusive(shell: Shell, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(harness_results(MARKS_BEFORE)))
    outcome = shell("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert outcome.code == 3
    assert "613 items per task would settle it" in " ".join(outcome.out.split())


def test_flips_are_shown(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(harness_results([1] * 9 + [0])))
    (tmp_path / "b.json").write_text(json.dumps(harness_results([0] * 9 + [1])))
    out = shell("compare", tmp_path / "a.json", tmp_path / "b.json", "--show-flips", 2, "--markdown").out
    assert out.count("quiz (acc): lost | Question") == 2
    assert out.count("quiz (acc): gained | Question 9?") == 1


def test_evaluate_and_compare_with_it(shell: Shell, llama_dir: Path, damaged: Path, text: Path, tmp_path: Path) -> None:
    result = tmp_path / "before.json"
    assert str(result) in shell.done("evaluate", llama_dir, "--text", text, "--output", result).out
    assert shell("evaluate", llama_dir, "--text", text, "--output", result).code == 2
    outcome = shell("compare", result, damaged, "--text", text)
    assert outcome.code == 3  # without both models there is no KL to judge
    assert "needs both" in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-drop", "much"], "--max-drop 'much'"),
        (["--max-drop=-1"], "--max-drop '-1'"),
        (["--tasks", "a,b,a"], "names a twice"),
        (["--suite", "papers"], "'papers' is not known"),
        (["--limit", "3"], "name some with --tasks"),
        (["--metric", "acc", "--tasks", "a"], "write TASK=METRIC"),
        (["--markdown", "--latex"], "choose one"),
        (["--window", "1"], "window of 1"),
    ],
)
def test_bad_options(shell: Shell, llama_dir: Path, words: list[str], message: str) -> None:
    outcome = shell("compare", llama_dir, llama_dir, *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_missing_extra_names_the_command_that_installs_it(
    shell: Shell, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as where it is not installed
    outcome = shell("compare", llama_dir, llama_dir, "--tasks", "piqa")
    assert outcome.code == 2
    extra = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    [requirement] = extra["optional-dependencies"]["eval"]
    assert f"pip install '{requirement}'" in " ".join(outcome.err.split())
