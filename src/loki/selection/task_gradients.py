"""Squared gradients of a task: how much every row would learn of it in a first step.

For a batch of examples with the loss F (mean negative log-likelihood of the answers' tokens, as in training) and the
row W_i of a layer's `down_proj.weight`, the value is |dF/dW_i|^2. The file has the form of a scores file with one entry
`[L, D]` per batch, and the `definition` `task_gradient`.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch.nn import functional
from transformers import PreTrainedModel

from loki.artefacts.provenance import SCORE_FIELDS, Provenance, config_digest, library_versions
from loki.artefacts.scores import SampleRecords, ScoresReader, ScoresWriter, check_finite
from loki.data.preparing import prepare_training_data
from loki.data.settings import DataSettings
from loki.data.sources import Data
from loki.errors import LokiError
from loki.files import atomic_file
from loki.models.architectures import text_config
from loki.models.experts import RowTensor, row_tensors
from loki.models.model_directory import AnyModel, ModelDirectory
from loki.ranks import pick_device
from loki.selection.strategy import TASK_GRADIENT

_NOT_TRAINED = -100  # label of a token without loss, as in PyTorch


@dataclass(frozen=True)
class TaskGradientSettings:
    """How a task's gradients are computed.

    Attributes:
        max_examples: how many examples to look at, drawn with `seed`; of fewer, all are taken.
        batch_size: examples per gradient.
        max_length: tokens per example; longer ones lose their end.
        seed: of that draw.
        dtype: type the model computes in; `auto` is the type it was saved in.
        device: `auto` (a GPU if there is one), `cpu`, `mps` or `cuda`.
        chat_template: Jinja file, or the name of a template that LoKI brings; None for the model's own.

    Raises:
        LokiError: if a number is not above 0.
    """

    max_examples: int = 256
    batch_size: int = 8
    max_length: int = 1024
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    chat_template: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_examples", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise LokiError(f"{name} is {getattr(self, name)}: it must be above 0")


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        ids: its tokens.
        labels: the same, and -100 for those that no loss is taken on.
    """

    ids: list[int]
    labels: list[int]


def write_task_gradients(
    model: AnyModel,
    task: Data,
    output: Path,
    settings: TaskGradientSettings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Compute the squared gradients of a task, and write them to a file.

    A file that holds those of the same model and examples already is left as it is.

    Args:
        model: local directory or hub id.
        task: training data, see `loki.data.examples.load_training_data`.
        output: file to write.
        settings: how (default: see `TaskGradientSettings`).
        overwrite: replace another file.
        progress: where to show how far it has come (default: nowhere).

    Returns:
        `output`.

    Raises:
        LokiError: if the model or the data cannot be used, a gradient is NaN or infinite, or `output` holds something
            else.
    """
    settings = settings or TaskGradientSettings()
    directory = ModelDirectory.of(model)
    directory.check_editable()
    batches = _batches(directory, task, settings)
    provenance = _provenance(directory, task, batches, settings)
    if output.is_file() and _holds(output, provenance):
        return output
    with atomic_file(output, overwrite=overwrite) as temporary:
        loaded = directory.load(dtype=settings.dtype, device=pick_device(settings.device))
        layers, hidden = len(directory.row_tensors), directory.text_config.hidden_size
        tracked = progress.add_task("Task gradients", total=len(batches)) if progress else None
        with ScoresWriter(temporary, layers, hidden, provenance) as writer:
            for number, (batch, gradients) in enumerate(
                zip(batches, row_gradients(loaded, batches, directory.experts), strict=True)
            ):
                squared = gradients[None].numpy()
                check_finite(squared, [f"batch {number}"], origin="gradients of the task")
                writer.append(squared, _record(number, batch))
                if progress and tracked is not None:
                    progress.advance(tracked)
    return output


def row_gradients(
    model: PreTrainedModel, batches: Sequence[Sequence[Example]], experts: str | None = None
) -> Iterator[torch.Tensor]:
    """Squared gradients of every row, `[L, D]` float32 on the CPU, batch by batch.

    The gradient of one layer's weight is in memory at a time. The model is left as it was, also after an error.

    Args:
        model: a model with `nn.Linear` projections.
        batches: examples of each.
        experts: which rows of a model with experts are meant; those of a layer without rows are 0.
    """
    layers = row_tensors(model, experts)
    weights = [
        (layer, tensor, model.get_parameter(tensor.name))
        for layer, tensors in enumerate(layers)
        for tensor in tensors
        if len(tensor.shape) > 1
    ]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    squared = torch.zeros(len(layers), text_config(model.config).hidden_size)

    def keep(layer: int, tensor: RowTensor, weight: torch.Tensor) -> None:
        assert weight.grad is not None
        squared[layer] += weight.grad.float().square().movedim(tensor.axis, 0).flatten(1).sum(dim=1).cpu()
        weight.grad = None

    model.requires_grad_(False)
    for _, _, weight in weights:
        weight.requires_grad_(True)
    hooks = [
        weight.register_post_accumulate_grad_hook(partial(keep, layer, tensor)) for layer, tensor, weight in weights
    ]
    try:
        for batch in batches:
            squared.zero_()
            with torch.enable_grad():
                _loss(model, batch).backward()  # type: ignore[no-untyped-call]
            yield squared.clone()
    finally:
        for hook in hooks:
            hook.remove()
        model.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)


def _loss(model: PreTrainedModel, batch: Sequence[Example]) -> torch.Tensor:
    """Mean negative log-likelihood of the trained tokens. Padding stands at the end, where no token can see it."""
    longest = max(len(example.ids) for example in batch)
    ids = torch.tensor([example.ids + [0] * (longest - len(example.ids)) for example in batch])
    labels = torch.tensor([example.labels + [_NOT_TRAINED] * (longest - len(example.ids)) for example in batch])
    mask = torch.tensor([[1] * len(example.ids) + [0] * (longest - len(example.ids)) for example in batch])
    device = model.get_input_embeddings().weight.device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits  # [B, T, V]
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits.device), ignore_index=_NOT_TRAINED
    )


def _batches(model: ModelDirectory, task: Data, settings: TaskGradientSettings) -> list[list[Example]]:
    examples = [
        Example(ids, [token if trained else _NOT_TRAINED for token, trained in zip(ids, mask, strict=True)])
        for ids, mask in _tokens(model, task, settings)
    ]
    if len(examples) > settings.max_examples:
        examples = random.Random(settings.seed).sample(examples, settings.max_examples)
    return [examples[start : start + settings.batch_size] for start in range(0, len(examples), settings.batch_size)]


def _tokens(model: ModelDirectory, task: Data, settings: TaskGradientSettings) -> Iterator[tuple[list[int], list[int]]]:
    rendered = DataSettings(chat_template=settings.chat_template)
    dataset = prepare_training_data(task, model, settings.max_length, rendered).dataset
    for ids, mask in zip(dataset["input_ids"], dataset["completion_mask"], strict=True):
        yield ids[: settings.max_length], mask[: settings.max_length]


def _provenance(
    model: ModelDirectory, task: Data, batches: list[list[Example]], settings: TaskGradientSettings
) -> Provenance:
    decides = batches if model.experts is None else [batches, model.experts.value]
    digest = hashlib.sha256(repr(decides).encode()).hexdigest()
    saved = str(model.config.dtype or torch.float32).removeprefix("torch.")
    return Provenance(
        model=model.name,
        model_fingerprint=model.fingerprint,
        definition=TASK_GRADIENT,
        steps=0,
        ig_method="",
        engine="",
        quantity="loss",
        absolute=False,
        position=0,
        dtype=saved if settings.dtype == "auto" else settings.dtype,
        source=str(task),
        source_digest=digest,
        versions=library_versions(),
        config_digest=config_digest(model.path),
    )


def _holds(path: Path, provenance: Provenance) -> bool:
    try:
        with ScoresReader(path) as reader:
            found = reader.provenance
    except LokiError:
        return False
    return found is not None and not found.differences(provenance, (*SCORE_FIELDS, "source_digest"))


def _record(number: int, batch: list[Example]) -> SampleRecords:
    digest = hashlib.sha256(repr(batch).encode()).hexdigest()
    unknown = np.full(1, np.nan)
    return SampleRecords([f"batch {number}"], [digest], [""], np.full(1, -1, np.int64), unknown, unknown)
