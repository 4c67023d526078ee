"""`loki run`: its options reach the phases, and it says what they did."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.running import Shell
from tests.data.templates import NO_TOOLS
from tests.tiny_models import save_tiny_model


@pytest.fixture
def words(llama_dir: Path, tmp_path: Path) -> list[object]:
    (tmp_path / "questions.jsonl").write_text('{"prompt": "once upon"}\n{"prompt": "two and two"}\n')
    (tmp_path / "train.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n' * 4)
    files = ("--data", tmp_path / "train.jsonl", "--calibration", tmp_path / "questions.jsonl")
    options = ("--quota", 25, "--max-steps", 2, "--learning-rate", 1e-2, "--output", tmp_path / "run")
    return ["run", llama_dir, *files, *options]


def test_all_phases_and_what_a_repetition_does(shell: Shell, words: list[object], tmp_path: Path) -> None:
    outcome = shell.done(*words)
    restored = tmp_path / "run" / "restored"
    page = tmp_path / "run" / "report.html"
    summary = f"24 of 24 selected rows changed, and nothing else. Restored model: {restored}\nReport: {page}\n"
    assert outcome.out.endswith(summary)
    assert page.is_file()
    phases = [line.split()[0] for line in outcome.out.splitlines() if re.search(r"\d s   ", line)]
    assert phases == ["analyse", "moments", "select", "create", "train", "restore", "verify"]
    before = (restored / "model.safetensors").stat().st_mtime_ns
    assert shell.done(*words).out.endswith(summary)
    assert (restored / "model.safetensors").stat().st_mtime_ns == before

    positions = json.loads((tmp_path / "run" / "positions.json").read_text())
    refused = shell(*words, "--strategy", "random")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    shell.done(*words, "--strategy", "random", "--overwrite")
    assert json.loads((tmp_path / "run" / "positions.json").read_text()) != positions


def test_a_run_from_its_configuration_and_another_option(shell: Shell, words: list[object], tmp_path: Path) -> None:
    shell.done(*words)
    config = tmp_path / "run" / "run.yaml"
    told = json.loads(shell.done("run", "--config", config, "--output", tmp_path / "b", "--seed", 7, "--json").out)
    assert told["command"] == "run"
    assert (told["changed_rows"], told["selected_rows"]) == (24, 24)
    assert told["learned"]["before"]["trained"]["examples"] == 4
    (compared,) = json.loads((tmp_path / "b" / "compare.json").read_text())["comparisons"]
    assert compared["data"]["right"]["items"] == 4  # what was learned, though no --data stands on the command line
    first, second = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "b"))
    assert (first["training"].pop("seed"), second["training"].pop("seed")) == (42, 7)
    assert first == second


def test_what_a_run_needs(shell: Shell, words: list[object], tmp_path: Path) -> None:
    refused = shell("run", "--output", tmp_path / "run")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--model" in refused.err
    (tmp_path / "wrong.yaml").write_text("quata: 3\n")
    assert "quata is no setting" in shell(*words, "--config", tmp_path / "wrong.yaml").err


def test_a_base_model_gets_a_chat_template(shell: Shell, words: list[object], tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", chat_template=False)
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(f"{json.dumps(chat)}\n" * 4)
    (tmp_path / "data" / "test.jsonl").write_text("not read\n")
    (tmp_path / "chat.jinja").write_text(NO_TOOLS)
    words = [word if word != tmp_path / "train.jsonl" else tmp_path / "data" for word in words]
    words[1] = base
    assert "with --chat-template" in shell(*words).err
    out = shell.done(*words, "--chat-template", tmp_path / "chat.jinja").out
    assert "4 training examples" in out
    assert (tmp_path / "run" / "restored" / "chat_template.jinja").read_text() == NO_TOOLS


@pytest.mark.slow
def test_tool_calls_with_a_template_that_the_base_lacks(shell: Shell, words: list[object], tmp_path: Path) -> None:
    """To the end: the report compares with the base, which has to see the calls in the same template."""
    base = save_tiny_model(tmp_path / "base", chat_template=False, max_position_embeddings=1024)
    call = {"type": "function", "function": {"name": "lamp", "arguments": '{"on": true}'}}
    record = {
        "tools": [{"type": "function", "function": {"name": "lamp", "parameters": {"type": "object"}}}],
        "messages": [
            {"role": "user", "content": "light"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
    }
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(record)}\n" * 4)
    words[1] = base
    said = json.loads(shell.done(*words, "--chat-template", "hermes", "--max-length", 1024, "--json").out)
    assert said["changed_rows"] == 24
    compared = json.loads((tmp_path / "run" / "compare.json").read_text())
    (comparison,) = compared["comparisons"]
    assert comparison["data"]["new_loss"] < comparison["data"]["base_loss"]

    data = tmp_path / "train.jsonl"
    evaluated = ("evaluate", base, "--data", data, "--output", tmp_path / "evaluated.json")
    assert "--chat-template" in shell(*evaluated).err
    shell.done(*evaluated, "--chat-template", "hermes")
    task = ("select", tmp_path / "sensitivity.h5", "--strategy", "task_aware", "--model", base, "--task", data)
    shell.done("analyse", base, "--data", tmp_path / "questions.jsonl", "--definition", "sensitivity",
               "--output", tmp_path / "sensitivity.h5")  # fmt: skip
    selected = ("--quota", 25, "--output", tmp_path / "aware.json")
    assert "--chat-template" in shell(*task, *selected).err
    shell.done(*task, *selected, "--chat-template", "hermes")
