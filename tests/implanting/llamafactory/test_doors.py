"""From a base model through LlamaFactory itself to a restored and verified one, by all three ways, in bfloat16."""

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from loki.artefacts.positions import write_positions
from loki.implanting.training.rows import ROWS_FILE
from loki.metrics.text import text_divergence
from loki.models.loading import load_model, load_tokenizer
from tests.implanting.llamafactory.files import POSITIONS, write_chats
from tests.programs import run_python, start_python
from tests.tiny_models import save_tiny_model

pytestmark = pytest.mark.slow

SELECTED = sum(map(len, POSITIONS))
STEPS = ("--max-steps", 4, "--save-steps", 2, "--learning-rate", 1e-2, "--batch-size", 2, "--logging-steps", 1)
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=["llama", "qwen2"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "base", request.param, dtype=torch.bfloat16)


@pytest.fixture
def positions(tmp_path: Path) -> Path:
    write_positions(tmp_path / "positions.json", POSITIONS)
    return tmp_path / "positions.json"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_chats(tmp_path / "chat.jsonl")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command of LlamaFactory's environment without a terminal and far from the repository."""

    def run(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        finished = subprocess.run(
            [*map(str, words)], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
        )
        assert finished.returncode == code, (finished.stdout + finished.stderr)[-3000:]
        return finished

    return run


@pytest.fixture
def loki(tmp_path: Path) -> Run:
    """Runs `loki` as far from it."""
    return partial(run_python, "-m", "loki", cwd=tmp_path)


def train_words(environment: Path, model: Path, data: Path, output: Path, *more: object) -> list[object]:
    python = environment / "python"
    words = ("--data", data, "--output", output, "--backend", "llamafactory", "--llamafactory-python", python)
    return ["train", model, *words, *STEPS, *more]


def write_yaml(folder: Path, data: Path, **changes: object) -> Path:
    """What a user of LlamaFactory writes: no LoKI in it but the model or adapter."""
    (folder / "dataset_info.json").write_text(
        f'{{"chat": {{"file_name": "{data}", "formatting": "sharegpt", "columns": {{"messages": "messages"}},'
        '"tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}}'
    )
    settings = {
        "stage": "sft",
        "do_train": True,
        "dataset": "chat",
        "dataset_dir": str(folder),
        "template": "default",
        "cutoff_len": 128,
        "output_dir": str(folder / "out"),
        "report_to": "none",
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_steps": 3,
        "use_cpu": True,
        "print_param_status": True,
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(settings | changes))
    return folder / "train.yaml"


def parameter_types(log: str) -> Counter[tuple[str, bool]]:
    """What LlamaFactory printed of every parameter: how many have which type and are trainable or not."""
    printed = re.findall(r"^name: .*, dtype: torch\.(\w+), .*, trainable: (\w+)$", log, flags=re.MULTILINE)
    return Counter((dtype, trainable == "True") for dtype, trainable in printed)


def check_restored(loki: Run, base: Path, trained: Path, positions: Path) -> None:
    restored = trained.with_name(f"{trained.name}-restored")
    loki("restore", trained, "--output", restored)
    said = loki("verify", base, restored, "--positions", positions).stdout
    assert f"({SELECTED} of {SELECTED} changed)" in " ".join(said.split())


def test_loki_train(environment: Path, loki: Run, base: Path, positions: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    loki(*train_words(environment, base, data, output, "--positions", positions))
    check_restored(loki, base, output, positions)
    check_restored(loki, base, output / "checkpoint-2", positions)
    optimizer = torch.load(output / "checkpoint-4" / "optimizer.pt")["state"].values()
    assert sum(entry["exp_avg"].numel() for entry in optimizer) == SELECTED * 48
    assert {entry["exp_avg"].dtype for entry in optimizer} == {torch.float32}


def test_llamafactory_cli_on_a_loki_model(
    environment: Path, run: Run, loki: Run, base: Path, positions: Path, data: Path, tmp_path: Path
) -> None:
    model = tmp_path / "loki_model"
    loki("create", base, "--positions", positions, "--output", model)
    file = write_yaml(
        tmp_path, data, model_name_or_path=str(model), finetuning_type="full", trust_remote_code=True, save_steps=2
    )
    printed = run(environment / "llamafactory-cli", "train", file)
    types = parameter_types(printed.stdout)
    assert {kind for kind in types if kind[1]} == {("float32", True)}
    assert types["float32", True] == 2
    assert {kind for kind in types if not kind[1]} == {("bfloat16", False)}
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert (tmp_path / "out" / "checkpoint-2" / ROWS_FILE).is_file()
    check_restored(loki, base, tmp_path / "out", positions)


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_levers(environment: Path, loki: Run, base: Path, positions: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("Most of what is known is better kept than lost. " * 40)
    keep = ("--keep", tmp_path / "general.txt")
    (tmp_path / "replay.txt").write_text("What was read before is read again.")
    mixed = ("--replay", tmp_path / "replay.txt", "--replay-fraction", 0.02)
    said, damage = {}, {}
    for name, levers in {
        "plain": (),
        "asft": ("--loss", "asft"),
        "eaft": ("--loss", "eaft"),
        "kept": (*keep, "--keep-weight", 100, "--keep-top-k", 30, *mixed),
        "none": (*keep, "--keep-weight", 0, "--max-damage", 0),
    }.items():
        words = train_words(environment, base, data, tmp_path / name, "--positions", positions, *levers)
        said[name] = loki(*words).stdout
        # On the text that is to be kept.
        before, after = (load_model(str(folder), dtype="float32") for folder in (base, tmp_path / name))
        text = (tmp_path / "general.txt").read_text()
        damage[name] = text_divergence(before, after, load_tokenizer(str(base)), [text]).kl_per_token
    assert 0 < damage["kept"] < 0.5 * damage["plain"], damage
    assert "1 general examples are mixed in" in said["kept"]
    assert len({damage[name] for name in ("plain", "asft", "eaft")}) == 3  # each is a loss of its own
    assert damage["none"] == 0
    assert "is above the budget 0: stopped, with the rows of step 0 (0)" in said["none"]
    trained, untrained = (load_file(folder / "model.safetensors") for folder in (tmp_path / "none", base))
    assert all(torch.equal(trained[name], tensor) for name, tensor in untrained.items())


@pytest.mark.parametrize("kind", ["rows", "rank", "protect"])
def test_llamafactory_cli_with_a_loki_adapter(
    environment: Path, run: Run, loki: Run, base: Path, positions: Path, data: Path, tmp_path: Path, kind: str
) -> None:
    adapter = tmp_path / "adapter"
    options: tuple[object, ...] = {"rows": (), "rank": ("--rank", 2), "protect": ("--protect", 0.5)}[kind]
    if kind == "protect":
        (tmp_path / "general.txt").write_text("Most of what is known is better kept than lost. " * 40)
        loki("moments", base, "--data", tmp_path / "general.txt", "--output", tmp_path / "moments.safetensors")
        options += ("--moments", tmp_path / "moments.safetensors")
    loki("adapter", base, "--positions", positions, "--output", adapter, *options)
    file = write_yaml(
        tmp_path, data, model_name_or_path=str(base), finetuning_type="lora", adapter_name_or_path=str(adapter)
    )
    types = parameter_types(run(environment / "llamafactory-cli", "train", file).stdout)
    assert types["float32", True] == (4 if kind == "rank" else 2)
    assert {kind for kind in types if not kind[1]} == {("bfloat16", False)}
    check_restored(loki, base, tmp_path / "out", positions)


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_never_a_silent_full_fine_tuning(
    environment: Path, run: Run, loki: Run, base: Path, positions: Path, data: Path, tmp_path: Path
) -> None:
    model = tmp_path / "loki_model"
    loki("create", base, "--positions", positions, "--output", model)
    file = write_yaml(tmp_path, data, model_name_or_path=str(model), finetuning_type="full")
    cli = environment / "llamafactory-cli"
    assert "trust_remote_code=True" in run(cli, "train", file, code=1).stderr
    trusted = ("trust_remote_code=true", "lora_target=q_proj", "freeze_trainable_layers=1")
    for method in ("lora", "freeze"):
        refused = run(cli, "train", file, f"finetuning_type={method}", *trusted, code=1).stderr
        assert re.search(r"LokiError: .* (is trainable, but is no selected row|frozen)", refused), refused[-2000:]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_without_loki_it_stops(
    environment: Path,
    run: Run,
    loki: Run,
    base: Path,
    positions: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, adapter = tmp_path / "loki_model", tmp_path / "adapter"
    loki("create", base, "--positions", positions, "--output", model)
    loki("adapter", base, "--positions", positions, "--output", adapter)
    cli, file = environment / "llamafactory-cli", write_yaml(tmp_path, data)
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    lora = (f"model_name_or_path={base}", f"adapter_name_or_path={adapter}", "finetuning_type=lora")
    assert "LOKI" in run(cli, "train", file, *lora, code=1).stderr.splitlines()[-1]
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "loki.py").write_text("raise ModuleNotFoundError(\"No module named 'loki'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))
    full = (f"model_name_or_path={model}", "finetuning_type=full", "trust_remote_code=true")
    assert "No module named 'loki'" in run(cli, "train", file, *full, code=1).stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_an_error_of_llamafactory_is_one_line(
    environment: Path, loki: Run, base: Path, positions: Path, data: Path, tmp_path: Path
) -> None:
    words = train_words(environment, base, data, tmp_path / "out", "--positions", positions, "--template", "nope")
    refused = loki(*words, code=2)
    assert "Template nope does not exist" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "Traceback" in (tmp_path / "out" / "llamafactory" / "log.txt").read_text()


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_interrupted_training_resumes_exactly(
    environment: Path, loki: Run, base: Path, positions: Path, data: Path, tmp_path: Path
) -> None:
    # The last --max-steps counts: long enough to be interrupted on the way.
    long = ("--positions", positions, "--max-steps", 1200, "--save-steps", 200, "--learning-rate", 1e-3)
    words = train_words(environment, base, data, tmp_path / "parts", *long)
    first = start_python("-m", "loki", *words, cwd=tmp_path)
    checkpoint = tmp_path / "parts" / "checkpoint-200"
    deadline = time.monotonic() + 200
    while not (checkpoint / ROWS_FILE).is_file() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130
    # Before it there may be a line of progress, of which one goes out every 30 seconds.
    *progress, last = said.splitlines()
    assert last == "error: interrupted: run the same command again to continue"
    assert all(re.match(r"training, .* of 1200 ", line) for line in progress)
    steps = len((tmp_path / "parts" / "trainer_log.jsonl").read_text().splitlines())
    time.sleep(1)
    assert len((tmp_path / "parts" / "trainer_log.jsonl").read_text().splitlines()) == steps < 1200, "still training"
    loki(*words)
    loki(*train_words(environment, base, data, tmp_path / "whole", *long))
    parts, whole = (load_file(tmp_path / name / "checkpoint-1200" / ROWS_FILE) for name in ("parts", "whole"))
    assert all(torch.equal(rows, whole[name]) for name, rows in parts.items())


@pytest.mark.parametrize("base", ["qwen2"], indirect=True)
@pytest.mark.parametrize("sharding", [(), pytest.param(("--deepspeed",), marks=pytest.mark.deepspeed)])
def test_two_processes(
    environment: Path,
    loki: Run,
    base: Path,
    positions: Path,
    data: Path,
    tmp_path: Path,
    sharding: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    output = tmp_path / "out"
    loki(*train_words(environment, base, data, output, "--positions", positions, "--processes", 2, *sharding))
    assert bool(sharding) == bool([*output.glob("checkpoint-4/global_step4/zero_*")])
    check_restored(loki, base, output, positions)
