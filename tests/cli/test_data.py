"""`loki data` shows examples as the template renders them, and figures that add up."""

import json
from pathlib import Path

from tests.cli.running import Shell
from tests.data.loading import write_records
from tests.data.templates import NO_TOOLS
from tests.tiny_models import save_tiny_model

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]}


def test_examples_and_figures(shell: Shell, llama_dir: Path, tmp_path: Path) -> None:
    path = write_records(
        tmp_path / "a.jsonl", CHAT, {**CHAT, "id": 3}, {"messages": []}, {"prompt": "ab", "completion": "c"}
    )
    found = json.loads(shell.done("data", llama_dir, "--data", path, "--max-length", 12, "--json").out)
    assert {
        name: found[name] for name in ("examples", "tokens", "trained_tokens", "median", "longest", "cut", "ended")
    } == {
        "examples": 3,
        "tokens": 17 + 17 + 4,
        "trained_tokens": 7 + 7 + 2,
        "median": 17,
        "longest": 17,
        "cut": 2,
        "ended": 1,
    }
    assert found["dropped"] == {"without an assistant's answer": 1}
    out = shell.done("data", llama_dir, "--data", path).out
    assert "<|user|>hi<|end|><|assistant|>⟦hello there<|end|>⟧" in out
    assert f"{path}, line 4" in out
    assert "ab⟦c</s>⟧" in out
    assert "1 records with the field id, which is not used" in out


def test_a_template_for_a_base_model(shell: Shell, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", chat_template=False)
    path = write_records(tmp_path / "a.jsonl", CHAT)
    refused = shell("data", base, "--data", path)
    assert refused.code == 2
    assert "line 1: is a conversation, but the tokenizer has no chat template" in refused.err
    (tmp_path / "chat.jinja").write_text(NO_TOOLS)
    options = ("--data", path, "--chat-template", tmp_path / "chat.jinja")
    out = shell.done("data", base, *options).out
    assert "⟦hello there<|im_end|>\n⟧" in out
    assert "trained in 0 of 1" in out
    (tmp_path / "chat.jinja").write_text("{% if %}")
    refused = shell("data", base, *options)
    assert refused.code == 2
    assert "chat.jinja does not work" in refused.err


def test_splits_and_shares(shell: Shell, llama_dir: Path, tmp_path: Path) -> None:
    for name, count in (("train", 6), ("test", 2)):
        write_records(tmp_path / f"{name}.jsonl", *[CHAT] * count)
    for options, expected in (
        (["--data", str(tmp_path)], 6),
        (["--data", str(tmp_path), "--data-split", "test"], 2),
        (["--data", f"{tmp_path / 'train.jsonl'}:0.5", "--data", f"{tmp_path / 'test.jsonl'}:0.5"], 4),
        (["--data", str(tmp_path / "train.jsonl"), "--data", str(tmp_path / "test.jsonl")], 8),
    ):
        outcome = shell.done("data", llama_dir, "--examples", 0, "--json", *options)
        assert json.loads(outcome.out)["examples"] == expected
