"""What an attacker puts into a file or a directory is never run, and never leads a command to write elsewhere."""

import json
import pickle
import shutil
import struct
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from loki.artefacts.positions import write_positions
from loki.artefacts.scores import ScoresReader
from loki.errors import LokiError
from loki.inputs import safetensors_header
from loki.selection.select import default_positions_path
from loki.selection.strategy import Inputs
from tests.artefacts.scores_files import write_scores
from tests.cli.running import Shell
from tests.hostile.sandbox import snapshot
from tests.tiny_models import save_tiny_model

TRAIN = ("--max-steps", 1, "--batch-size", 1, "--learning-rate", 1e-2, "--warmup", 0)


@dataclass(frozen=True)
class Touches:
    """Makes a file when it is unpickled."""

    path: Path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Exists once an attack has succeeded."""
    return tmp_path / "attacked"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model, with positions and data beside it."""
    save_tiny_model(tmp_path / "base", "llama")
    write_positions(tmp_path / "positions.json", [[1, 2], [3], [4]])
    (tmp_path / "train.jsonl").write_text('{"prompt": "who?", "completion": " nobody"}\n')
    (tmp_path / "questions.jsonl").write_text('{"prompt": "who?"}\n')
    (tmp_path / "text.txt").write_text("Nothing in particular.")
    return tmp_path / "base"


def commands(base: Path) -> list[tuple[object, ...]]:
    folder = base.parent
    positions, out = ("--positions", folder / "positions.json"), ("--output", folder / "out")
    return [
        ("analyse", base, "--data", folder / "questions.jsonl", *out),
        ("create", base, *positions, *out),
        ("adapter", base, *positions, *out),
        ("suppress", base, *positions, *out),
        ("verify", base, base, *positions),
        ("train", base, *positions, "--data", folder / "train.jsonl", *out, *TRAIN),
        ("evaluate", base, "--text", folder / "text.txt", "--output", folder / "out.json"),
        ("moments", base, "--data", folder / "questions.jsonl", *out),
    ]


def check_refused(shell: Shell, words: tuple[object, ...], marker: Path) -> None:
    before = snapshot(marker.parent)
    outcome = shell(*words)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), f"{words[0]}: {outcome.err}"
    assert not marker.exists(), f"{words[0]} was made to run something"
    assert snapshot(marker.parent) == before, f"{words[0]} has written something"


def test_the_attack_would_work(marker: Path) -> None:
    pickle.loads(pickle.dumps(Touches(marker)))
    assert marker.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.pt"])
def test_weights_are_never_unpickled(name: str, shell: Shell, base: Path, marker: Path) -> None:
    (base / "model.safetensors").unlink()
    torch.save(Touches(marker), base / name)
    for words in commands(base):
        check_refused(shell, words, marker)


def test_adapters_are_never_unpickled(shell: Shell, base: Path, marker: Path) -> None:
    adapter, out = base.parent / "adapter", ("--output", base.parent / "out")
    shell.done("adapter", base, "--positions", base.parent / "positions.json", "--rank", 2, "--output", adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(Touches(marker), adapter / "adapter_model.bin")
    for words in (
        ("restore", adapter, "--base", base, *out, "--allow-unchanged"),
        ("merge-adapters", adapter, adapter, *out),
        ("export-lora", adapter, *out),
        ("evaluate", adapter, "--text", base.parent / "text.txt", "--output", base.parent / "out.json"),
    ):
        check_refused(shell, words, marker)


@pytest.mark.slow
def test_checkpoints_of_a_training_are_never_unpickled(shell: Shell, base: Path, marker: Path) -> None:
    folder = base.parent
    words = ("train", base, "--positions", folder / "positions.json", "--data", folder / "train.jsonl")
    words = (*words, "--output", folder / "trained", "--learning-rate", 1e-2, "--epochs", 2, "--save-steps", 1)
    shell.done(*words)
    record = json.loads((folder / "trained/training.json").read_text())
    (folder / "trained/training.json").write_text(json.dumps({**record, "finished": False}))
    shutil.rmtree(folder / "trained/checkpoint-2")
    found = [path for path in (folder / "trained/checkpoint-1").iterdir() if path.suffix in (".pt", ".pth", ".bin")]
    assert found
    for path in found:
        torch.save(Touches(marker), path)
    shell(*words)  # whether it goes on without them or not
    assert not marker.exists()


def test_arrays_are_never_unpickled(tmp_path: Path, marker: Path) -> None:
    from loki.analysis.work_folder import WorkFolder

    batches = tmp_path / "partial/batches"
    batches.mkdir(parents=True)
    array = np.array([Touches(marker)], dtype=object)
    names = ("scores", "targets", "probabilities", "completeness")
    np.savez(batches / "00000000.npz", allow_pickle=True, **dict.fromkeys(names, array))  # type: ignore[arg-type]
    with pytest.raises(LokiError, match="damaged"):
        WorkFolder(tmp_path / "partial").read_batch(0)
    assert not marker.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_is_not_run_unless_asked_for(file: str, shell: Shell, base: Path, marker: Path) -> None:
    (base / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    values = json.loads((base / file).read_text())
    if file == "config.json":
        values |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B"}}
    else:
        values |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.C", "evil.C"]}}
    (base / file).write_text(json.dumps(values))
    for words in commands(base):
        shell(*words)
        assert not marker.exists(), f"{words[0]} ran the code"


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% include '/etc/passwd' %}"])
def test_chat_templates_stay_in_their_sandbox(template: str, shell: Shell, base: Path, marker: Path) -> None:
    (base.parent / "template.jinja").write_text(template)
    words = ("data", base, "--data", base.parent / "train.jsonl", "--chat-template", base.parent / "template.jinja")
    check_refused(shell, words, marker)


@pytest.mark.parametrize("place", ["../attacked", "/ATTACKED", "sub/../../attacked", "..\\attacked"])
def test_a_shard_index_leads_nowhere_else(place: str, shell: Shell, base: Path, marker: Path) -> None:
    place = place.replace("/ATTACKED", str(marker))
    (base / "model.safetensors").rename(marker.with_name("attacked.safetensors"))
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, f"{place}.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    for words in commands(base):
        check_refused(shell, words, marker)


def test_the_name_of_a_template_leads_nowhere_else(shell: Shell, base: Path, marker: Path) -> None:
    values = json.loads((base / "tokenizer_config.json").read_text())
    (base / "chat_template.jinja").unlink(missing_ok=True)
    evil = {"name": f"../../../{marker.name}", "template": "x"}
    values["chat_template"] = [{"name": "default", "template": "{{ messages[0]['content'] }}"}, evil]
    (base / "tokenizer_config.json").write_text(json.dumps(values))
    before = snapshot(base.parent)
    for words in commands(base):
        shell(*words)
        outside = {name for name in snapshot(base.parent).keys() - before.keys() if not name.startswith("out")}
        assert not outside, f"{words[0]} wrote {outside}"
        shutil.rmtree(base.parent / "out", ignore_errors=True)
        (base.parent / "out").unlink(missing_ok=True)


def test_the_name_of_a_model_in_scores_leads_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_scores(tmp_path / "scores.h5", np.zeros((2, 3, 8), np.float32))
    for name in ("../../attacked", "/attacked", "..", "a/../../.."):
        with h5py.File(tmp_path / "scores.h5", "r+") as file:
            file.attrs["model"] = name
        path = default_positions_path(Inputs(tmp_path / "scores.h5"), 10).resolve()
        assert path.is_relative_to(tmp_path / "kva_result/pos_json")


@pytest.mark.parametrize("kind", ["link", "storage", "virtual"])
def test_scores_are_never_taken_from_another_file(kind: str, tmp_path: Path) -> None:
    scores = np.ones((2, 3, 8), np.float32)
    write_scores(tmp_path / "scores.h5", scores)
    write_scores(tmp_path / "other.h5", scores)
    with h5py.File(tmp_path / "scores.h5", "r+") as file:
        del file["dataset"]
        if kind == "link":
            file["dataset"] = h5py.ExternalLink("other.h5", "/dataset")
        elif kind == "storage":
            outside = [(str(tmp_path / "other.h5"), 0, scores.nbytes)]
            file.create_dataset("dataset", shape=scores.shape, dtype=np.float32, external=outside)
        else:
            layout = h5py.VirtualLayout(shape=scores.shape, dtype=np.float32)
            layout[:] = h5py.VirtualSource("other.h5", "dataset", shape=scores.shape)
            file.create_virtual_dataset("dataset", layout)
    with pytest.raises(LokiError, match=r"link to somewhere else|other files"):
        ScoresReader(tmp_path / "scores.h5")


@pytest.mark.parametrize("size", [2**26, 2**40, 2**63, 2**64 - 1])
def test_sizes_in_headers_are_checked_before_memory_is_taken(size: int, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", size) + b'{"a":{"dtype":"F32"}}')
    tracemalloc.start()
    try:
        with pytest.raises(LokiError, match="damaged"):
            safetensors_header(tmp_path / "a.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
