"""Gradients of a task against plain autograd, one example at a time and without padding."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from loki.artefacts.scores import ScoresReader
from loki.data.preparing import prepare_training_data
from loki.errors import LokiError
from loki.models.checkpoint import fingerprint
from loki.models.experts import down_projections
from loki.models.model_directory import ModelDirectory
from loki.selection.select import select
from loki.selection.strategies import SelectionSettings
from loki.selection.strategy import Inputs
from loki.selection.task_gradients import Example, TaskGradientSettings, row_gradients, write_task_gradients
from tests.artefacts.scores_files import write_scores
from tests.cli.running import Shell, shell
from tests.tiny_models import save_tiny_model
from tests.tolerances import assert_close

__all__ = ["shell"]

RECORDS = [
    {"prompt": "say " * (1 + index % 3), "completion": f" {index} and more" * (1 + index % 2)} for index in range(7)
]
SMALL = TaskGradientSettings(batch_size=3)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


def naive(directory: Path, task: Path, size: int) -> torch.Tensor:
    """Squared row gradients `[batches, L, D]` of the mean loss over the answers' tokens of each batch."""
    model = ModelDirectory(directory)
    dataset = prepare_training_data(str(task), model, 1024).dataset
    loaded = model.load(dtype=torch.float64)
    weights = [projection.weight for projection in down_projections(loaded).values()]
    batches = []
    for start in range(0, len(dataset), size):
        losses = []
        for example in dataset.to_list()[start : start + size]:
            logits = loaded(input_ids=torch.tensor([example["input_ids"]])).logits[0]
            for place, trained in enumerate(example["completion_mask"]):
                if trained:
                    losses.append(-functional.log_softmax(logits[place - 1], dim=0)[example["input_ids"][place]])
        gradients = torch.autograd.grad(torch.stack(losses).mean(), weights)
        batches.append(torch.stack([gradient.square().sum(dim=1) for gradient in gradients]))
    return torch.stack(batches)


def read(path: Path) -> torch.Tensor:
    with ScoresReader(path) as reader:
        return torch.from_numpy(reader.scores(0, reader.samples))


def test_equal_to_plain_autograd(llama_dir: Path, task: Path, tmp_path: Path) -> None:
    found = read(write_task_gradients(llama_dir, str(task), tmp_path / "task.h5", SMALL))
    expected = naive(llama_dir, task, 3)
    assert found.shape == (3, 3, 32)
    assert_close(found, expected)


def test_squares_of_half_precision_are_taken_in_float32(llama_dir: Path) -> None:
    model = ModelDirectory(llama_dir).load(dtype=torch.float16)
    batch = [Example([1, 2, 3, 4], [-100, -100, 3, 4])]
    (found,) = row_gradients(model, [batch])
    model.requires_grad_(True)
    logits = model(input_ids=torch.tensor([batch[0].ids])).logits[0].float()
    functional.cross_entropy(logits[1:3], torch.tensor([3, 4])).backward()
    gradients = [projection.weight.grad for projection in down_projections(model).values()]
    expected = torch.stack([gradient.double().square().sum(dim=1) for gradient in gradients if gradient is not None])
    assert found.dtype == torch.float32
    assert_close(found, expected)


def test_the_model_is_left_as_it_was(llama_dir: Path, task: Path) -> None:
    model = ModelDirectory(llama_dir).load()
    model.get_input_embeddings().weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    batches = row_gradients(model, [[Example([1, 2, 3], [-100, -100, 3])], [Example([1, 999], [-100, 1])]])
    assert next(batches).shape == (3, 32)
    with pytest.raises(IndexError):  # no such token
        next(batches)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_a_finished_file_is_not_made_again_nor_overwritten(llama_dir: Path, task: Path, tmp_path: Path) -> None:
    output = tmp_path / "task.h5"
    write_task_gradients(llama_dir, str(task), output, SMALL)
    before = output.stat().st_mtime_ns
    write_task_gradients(llama_dir, str(task), output, SMALL)
    assert output.stat().st_mtime_ns == before
    with pytest.raises(LokiError, match=r"task\.h5 .*exists"):
        write_task_gradients(llama_dir, str(task), output, TaskGradientSettings(batch_size=2))
    write_task_gradients(llama_dir, str(task), output, TaskGradientSettings(batch_size=2), overwrite=True)
    assert len(read(output)) == 4


def test_some_of_many_examples(llama_dir: Path, task: Path, tmp_path: Path) -> None:
    drawn = [
        read(
            write_task_gradients(
                llama_dir,
                str(task),
                tmp_path / f"{name}.h5",
                TaskGradientSettings(max_examples=4, batch_size=3, seed=seed),
            )
        )
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(drawn[0]) == 2


def test_nan_leaves_nothing_behind(llama_dir: Path, task: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in llama_dir.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tensors = load_file(llama_dir / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LokiError, match="batch 0, layer 0"):
        write_task_gradients(model, str(task), tmp_path / "task.h5", SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "task.jsonl"]


@pytest.mark.parametrize("name", ["max_examples", "batch_size", "max_length"])
def test_numbers_out_of_range(name: str) -> None:
    with pytest.raises(LokiError, match=f"{name} is 0"):
        TaskGradientSettings(**{name: 0})


def test_the_command_computes_selects_and_keeps_the_gradients(
    shell: Shell, llama_dir: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage = torch.rand(2, 3, 32, generator=torch.Generator().manual_seed(0)).numpy()
    made = {"definition": "sensitivity", "model_fingerprint": fingerprint(llama_dir)}
    scores = write_scores(Path("sensitivity.h5"), damage, **made)
    words = ("select", scores, "--strategy", "task_aware", "--quota", 25, "--output")
    refused = shell(*words, "pos.json", "--task", task)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--model" in refused.err
    other = write_scores(Path("paper.h5"), damage, **{**made, "definition": "paper"})
    wrong = ("select", other, "--strategy", "task_aware", "--quota", 25, "--task", task, "--model", llama_dir)
    assert "goes by scores of the definition sensitivity" in shell(*wrong, "--output", "w.json").err
    assert not Path("w.task.h5").exists()  # nothing was computed for what is refused
    shell.done(*words, "pos.json", "--task", task, "--model", llama_dir)
    expected = select(Inputs(scores, task=Path("pos.task.h5")), 25, SelectionSettings("task_aware"))
    assert json.loads(Path("pos.json").read_text()) == expected
    shell.done(*words, "again.json", "--task", "pos.task.h5")
    assert json.loads(Path("again.json").read_text()) == expected


def test_gradients_of_other_rows_are_not_taken_for_those_that_are_meant(task: Path, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", "deepseek_v3")
    write_task_gradients(ModelDirectory(model, experts="shared"), task, tmp_path / "task.h5", SMALL)
    first = read(tmp_path / "task.h5")
    with pytest.raises(LokiError, match="exists already"):
        write_task_gradients(ModelDirectory(model, experts="dense"), task, tmp_path / "task.h5", SMALL)
    write_task_gradients(ModelDirectory(model, experts="dense"), task, tmp_path / "task.h5", SMALL, overwrite=True)
    assert not torch.equal(read(tmp_path / "task.h5"), first)
