"""A model is looked up once and each of its parts read once, by the class and by every command."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loki.errors import LokiError
from loki.models import checkpoint, hub, loading
from loki.models.checkpoint import fingerprint
from loki.models.model_directory import ModelDirectory
from tests.cli.running import Shell, shell

__all__ = ["shell"]

HUB_ID = "somebody/tiny-llama"


class Calls:
    """Counts look-ups of the hub, which knows one model, and readings of configurations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, snapshot: Path) -> None:
        self.lookups: list[str] = []
        self.configurations: list[Path] = []
        read = loading.AutoConfig.from_pretrained

        def download(repository: str, **_: object) -> str:
            self.lookups.append(repository)
            return str(snapshot)

        def read_configuration(path: Path, **options: object) -> object:
            self.configurations.append(Path(path))
            return read(path, **options)

        monkeypatch.setattr(hub, "snapshot_download", download)
        # In the place of the class where LoKI reads configurations; tokenizers look into it as well, on their own.
        monkeypatch.setattr(loading, "AutoConfig", SimpleNamespace(from_pretrained=read_configuration))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, llama_dir: Path) -> Calls:
    return Calls(monkeypatch, llama_dir)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "positions.json").write_text("[[1, 2], [3], []]")
    (tmp_path / "questions.jsonl").write_text('{"prompt": "once upon"}\n')
    (tmp_path / "train.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n' * 4)
    return tmp_path


def test_everything_is_read_once(calls: Calls, llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelDirectory(HUB_ID)
    assert ModelDirectory.of(model) is model
    for part in ("config", "text_config", "tokenizer", "checkpoint", "fingerprint", "row_tensors"):
        assert getattr(model, part) is getattr(model, part)
    assert model.load().config.hidden_size == model.text_config.hidden_size
    assert (calls.lookups, calls.configurations) == ([HUB_ID], [llama_dir])
    assert model.fingerprint == fingerprint(llama_dir)
    assert [[tensor.name for tensor in layer] for layer in model.row_tensors] == [
        [f"model.layers.{layer}.mlp.down_proj.weight"] for layer in range(3)
    ]


def test_it_stands_for_its_path_and_its_name(calls: Calls, llama_dir: Path) -> None:
    model = ModelDirectory(HUB_ID)
    assert (Path(model), str(model), model.name) == (llama_dir, HUB_ID, HUB_ID)


def test_loading_leaves_the_shared_configuration_as_it_is(llama_dir: Path) -> None:
    model = ModelDirectory(llama_dir)
    before = model.config.to_dict()
    assert model.load(dtype="bfloat16").dtype == torch.bfloat16
    assert model.config.to_dict() == before
    assert model.load().dtype == torch.float32


def test_another_process_reads_what_it_needs_itself(llama_dir: Path) -> None:
    model = ModelDirectory(llama_dir, trust_remote_code=True)
    assert model.config and model.tokenizer
    copy = pickle.loads(pickle.dumps(model))
    assert vars(copy) == {"name": str(llama_dir), "path": llama_dir, "trust_remote_code": True, "experts": None}
    assert copy.config.to_dict() == model.config.to_dict()


def test_check_finds_missing_weights_and_configurations(llama_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llama_dir, tmp_path / "copy"))
    ModelDirectory(copy).check()
    for name in (checkpoint.SINGLE_NAME, "config.json"):
        (copy / name).unlink()
        with pytest.raises(LokiError, match=name):
            ModelDirectory(copy).check()


@pytest.mark.parametrize(("positions", "problem"), [([[1], [2]], "2 layers"), ([[1], [], [32]], "32")])
def test_positions_for_another_model(llama_dir: Path, positions: list[list[int]], problem: str) -> None:
    with pytest.raises(LokiError, match=f"mine: .*{problem}"):
        ModelDirectory(llama_dir).rows_for(positions, origin="mine")


@pytest.mark.parametrize(
    "words",
    [
        "analyse MODEL --data questions.jsonl --output scores.h5",
        "analyse MODEL --data questions.jsonl --no-log --quota 25 --output positions",
        "create MODEL --positions positions.json --output loki_model",
        "adapter MODEL --positions positions.json --output adapter",
        "train MODEL --positions positions.json --data train.jsonl --output trained --max-steps 2 --learning-rate 1e-2",
        "suppress MODEL --positions positions.json --output suppressed",
    ],
)
def test_a_command_looks_a_model_up_once(
    shell: Shell, calls: Calls, files: Path, monkeypatch: pytest.MonkeyPatch, llama_dir: Path, words: str
) -> None:
    monkeypatch.chdir(files)
    shell.done(*(HUB_ID if word == "MODEL" else word for word in words.split()))
    assert (calls.lookups, calls.configurations) == ([HUB_ID], [llama_dir])


@pytest.mark.slow
def test_a_run_looks_its_model_up_once(
    shell: Shell, calls: Calls, files: Path, monkeypatch: pytest.MonkeyPatch, llama_dir: Path
) -> None:
    monkeypatch.chdir(files)
    data = ("--data", "train.jsonl", "--calibration", "questions.jsonl")
    options = ("--quota", 25, "--max-steps", 2, "--learning-rate", 1e-2, "--output", "run")
    shell.done("run", HUB_ID, *data, *options)
    assert calls.lookups == [HUB_ID]
    assert calls.configurations.count(llama_dir) == 1
    assert json.loads(Path("run/loki_model/config.json").read_text())["base_model_name_or_path"] == HUB_ID
    shell.done("verify", HUB_ID, "run/restored", "--positions", "run/positions.json")
    assert calls.lookups == [HUB_ID] * 2
    assert calls.configurations.count(llama_dir) == 2
    shell.done("restore", "run/trained", "--base", HUB_ID, "--output", "again")
    assert calls.lookups == [HUB_ID] * 3
    shell.done("report", "run", "--output", "page.html")
    assert calls.lookups == [HUB_ID] * 4
    assert Path("again/model.safetensors").read_bytes() == Path("run/restored/model.safetensors").read_bytes()
