"""`--trust-remote-code`: in every command that loads a model, and enough for a model that brings its own code."""

import importlib
import inspect
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from loki.artefacts.positions import write_positions
from loki.cli.app import app
from loki.cli.main import COMMANDS
from loki.cli.shared_options import TrustRemoteCode
from tests.cli.running import Shell
from tests.tiny_models import tiny_model, tiny_tokenizer

LOADS_NO_MODEL = {"merge", "inspect", "plot", "export_lora", "merge_adapters", "demo"}
SOURCE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 2 * outputs.logits
        return outputs
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_that_load_a_model_have_it(command: str) -> None:
    importlib.import_module(f"loki.cli.{command}")
    infos = {info.name or info.callback.__name__: info.callback for info in app.registered_commands if info.callback}
    given = inspect.signature(infos[command]).parameters
    assert ("trust_remote_code" in given) == (command not in LOADS_NO_MODEL)
    if command not in LOADS_NO_MODEL:
        (option,) = get_args(given["trust_remote_code"].annotation)[1:]
        (shared,) = get_args(TrustRemoteCode)[1:]
        assert (given["trust_remote_code"].default, option.help) == (False, shared.help)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A model whose code lies in its directory."""
    directory = tmp_path / "own"
    model = tiny_model()
    model.config.auto_map = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    model.config.architectures = ["OwnForCausalLM"]
    model.save_pretrained(directory)
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(text.replace('"model_type": "llama"', '"model_type": "own_llama"'))
    (directory / "modeling_own.py").write_text(SOURCE)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.slow
def test_a_model_with_code_of_its_own(shell: Shell, own: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Nothing in particular.")
    (tmp_path / "data.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n' * 2)
    (tmp_path / "questions.jsonl").write_text('{"prompt": "Who?"}\n')
    write_positions(tmp_path / "positions.json", [[1, 3], [], [0]])
    made, positions = tmp_path / "made", ("--positions", tmp_path / "positions.json")
    text, data = ("--text", tmp_path / "text.txt"), ("--data", tmp_path / "data.jsonl")
    questions, out = tmp_path / "questions.jsonl", ("--output", made)

    def both(*words: object) -> None:
        """Refused without the option, in one line that names it; done with it."""
        refused = shell(*words)
        assert (refused.code, refused.err.count("\n"), "--trust-remote-code" in refused.err) == (2, 1, True), refused
        assert not made.exists()
        shell.done(*words, "--trust-remote-code")

    both("analyse", own, "--data", questions, *out)
    scores = made.rename(tmp_path / "scores.h5")
    both("moments", own, "--data", tmp_path / "text.txt", *out)
    made.unlink()
    both("select", "--strategy", "magnitude", "--model", own, "--quota", 10, *out)
    made.unlink()
    both("ablate", own, "--scores", scores, "--quotas", 10, *text)
    both("data", own, *data)
    both("adapter", own, *positions, *out)
    adapter = made.rename(tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: torch.ones_like(one) for name, one in weights.items()}, adapter / "adapter_model.safetensors")
    both("scale", adapter, *data, "--keep", tmp_path / "text.txt", "--scales", "0.5,1")
    both("restore", adapter, *out)
    restored = made.rename(tmp_path / "restored")
    both("verify", own, restored, *positions)
    both("evaluate", adapter, *text, *out)
    made.unlink()
    both("suppress", own, *positions, *out)
    compared = shell("compare", own, restored, *positions, *text, "--trust-remote-code")
    assert compared.code in (1, 3), compared  # it failed, or the text is too short to tell
    assert shell("compare", own, restored, *text).code == 2
    # What no LoKI model directory can hold.
    train = (*data, "--output", tmp_path / "trained", "--trust-remote-code")
    for words in (
        ("create", own, *positions, "--output", tmp_path / "loki", "--trust-remote-code"),
        ("train", own, *positions, *train),
        ("tune", own, *positions, *train),
        ("run", own, *train, "--calibration", questions),
    ):
        refused = shell(*words)
        assert (refused.code, refused.err.count("\n"), "loki adapter" in refused.err) == (2, 1, True), refused
    assert not (tmp_path / "trained").exists()
