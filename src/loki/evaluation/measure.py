"""What one model does on texts, training data and tasks: the one-sided form of a comparison, and its file."""

import copy
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.data.examples import load_training_data
from loki.data.fitting import fit_to_model, length_within
from loki.data.preparing import set_chat_template
from loki.errors import LokiError, one_line
from loki.evaluation.harness import Harness
from loki.evaluation.items import Item, TaskItems
from loki.evaluation.lm_eval_results import Results, is_results, read_results, tasks_in
from loki.evaluation.options import MeasureOptions
from loki.evaluation.subjects import Subject
from loki.files import sha256_of_file, write_json
from loki.metrics.completions import completion_scores
from loki.metrics.text import TextLoss, text_loss
from loki.metrics.texts import TextSource, text_sources
from loki.ranks import pick_device

EXACT_MATCH = "exact match"


@dataclass(frozen=True)
class TextResult:
    """Loss on one text source.

    Attributes:
        digest: hash of the texts.
        nll: of every window, in nats.
        tokens: of every window.
        nll_by_text: of every text, in nats.
        bytes: of every text.
        window: tokens per window.
    """

    digest: str
    nll: list[float]
    tokens: list[int]
    nll_by_text: list[float]
    bytes: list[int]
    window: int

    @classmethod
    def of(cls, source: TextSource, loss: TextLoss, window: int) -> "TextResult":
        """From a measurement."""
        windows = loss.windows
        by_text = loss.nll_by_text().tolist()
        return cls(source.digest, loss.nll.tolist(), windows.tokens.tolist(), by_text, windows.bytes, window)

    @property
    def loss(self) -> float:
        """Nats per token."""
        return sum(self.nll) / sum(self.tokens)

    @property
    def loss_per_byte(self) -> float:
        """Nats per byte."""
        return sum(self.nll_by_text) / sum(self.bytes)


@dataclass(frozen=True)
class DataResult:
    """Loss and exact match on training data.

    Attributes:
        name: of the file.
        nll: of every completion, in nats.
        tokens: of every completion.
        items: whether it is exactly right.
    """

    name: str
    nll: list[float]
    tokens: list[int]
    items: TaskItems

    @property
    def loss(self) -> float:
        """Nats per token of the completions."""
        return sum(self.nll) / sum(self.tokens)


@dataclass(frozen=True)
class ModelResult:
    """What one model did.

    Attributes:
        name: the model as the user named it.
        fingerprint: hash of the model; empty where it is not known.
        texts: by name of the source.
        data: on training data, if any.
        tasks: by name.
        harness: results of lm-evaluation-harness as it gave them.
    """

    name: str
    fingerprint: str
    texts: dict[str, TextResult] = field(default_factory=dict)
    data: DataResult | None = None
    tasks: dict[str, TaskItems] = field(default_factory=dict)
    harness: Results = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Loaded:
    """A model in memory.

    Attributes:
        subject: where it comes from.
        model: the model.
        tokenizer: its tokenizer.
        fingerprint: hash of the model and of what it computes in.
    """

    subject: Subject
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str


def load(subject: Subject, options: MeasureOptions) -> Loaded:
    """Load a model to measure it."""
    device = pick_device(options.device)
    dtype = "float32" if options.dtype == "auto" and device.type == "cpu" else options.dtype
    model, tokenizer = subject.load(dtype=dtype, device=device)
    return Loaded(subject, model, tokenizer, f"{subject.fingerprint()}-{str(model.dtype).removeprefix('torch.')}")


def evaluate(subject: Subject, options: MeasureOptions) -> ModelResult:
    """Measure one model.

    Args:
        subject: the model.
        options: what to measure.

    Raises:
        LokiError: for bad input of any kind.
    """
    harness = Harness(options.tasks) if options.tasks.tasks else None
    sources = text_sources(options.texts)
    loaded = load(subject, options)
    texts = {}
    for source in sources:
        loss = text_loss(loaded.model, loaded.tokenizer, source.texts, window=options.window)
        texts[source.name] = TextResult.of(source, loss, options.window)
    return replace(measure_questions(loaded, options, harness), texts=texts)


def measure_questions(loaded: Loaded, options: MeasureOptions, harness: Harness | None) -> ModelResult:
    """All but the texts: training data and tasks."""
    results = harness.run(loaded.fingerprint, loaded.model, loaded.tokenizer) if harness else {}
    return ModelResult(
        loaded.subject.name,
        loaded.fingerprint,
        data=_measure_data(loaded, options) if options.data else None,
        tasks=tasks_in(results, options.metrics) if results else {},
        harness=results,
    )


def save_result(path: Path, result: ModelResult, *, overwrite: bool = False) -> None:
    """Write a result, as lm-evaluation-harness writes its own, with LoKI's beside it under `loki`.

    Raises:
        LokiError: if `path` exists and `overwrite` is False.
    """
    own = {
        "version": version("loki-llm"),
        "name": result.name,
        "fingerprint": result.fingerprint,
        "texts": {name: asdict(text) for name, text in result.texts.items()},
        "data": asdict(result.data) if result.data else None,
    }
    empty: Results = {"results": {}, "configs": {}, "versions": {}, "n-shot": {}, "samples": {}}
    write_json(path, {**empty, **result.harness, "loki": own}, overwrite=overwrite, indent=None)


def read_result(path: Path, options: MeasureOptions) -> ModelResult:
    """Read a result of `loki evaluate` or of lm-evaluation-harness.

    Raises:
        LokiError: if it is neither, or has no items.
    """
    results = read_results(path)
    own: Any = results.pop("loki", None) or {}
    try:
        data = own.get("data")
        if data:
            items = {key: Item(**item) for key, item in data["items"].pop("items").items()}
            data = DataResult(**{**data, "items": TaskItems(**data["items"], items=items)})
        return ModelResult(
            own.get("name") or str(results.get("model_name") or path),
            own.get("fingerprint", ""),
            {name: TextResult(**text) for name, text in own.get("texts", {}).items()},
            data,
            tasks_in(results, options.metrics),
            results,
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise LokiError(f"{path} is damaged ({one_line(error)}): evaluate again") from error


def is_result(name: str) -> bool:
    """Whether `name` is a file or directory of results rather than a model."""
    return is_results(Path(name))


def _measure_data(loaded: Loaded, options: MeasureOptions) -> DataResult:
    path = options.data
    assert path is not None
    limit = length_within(loaded.model.config, options.max_length)
    tokenizer = loaded.tokenizer
    if options.chat_template is not None:
        tokenizer = copy.deepcopy(tokenizer)
        set_chat_template(tokenizer, options.chat_template)
    records = load_training_data(path, chat_template=bool(tokenizer.chat_template))
    data = fit_to_model(records, tokenizer, limit)
    ids, masks = data.dataset["input_ids"], data.dataset["completion_mask"]
    scores = completion_scores(loaded.model, ids, masks)
    items = {}
    for number, (origin, tokens, mask, right) in enumerate(
        zip(data.origins, ids, masks, scores.right.tolist(), strict=True), start=1
    ):
        start = mask.index(1)
        prompt, answer = (tokenizer.decode(part, skip_special_tokens=True) for part in (tokens[:start], tokens[start:]))
        items[f"{number} {origin.rpartition('/')[2]}"] = Item(
            float(right), prompt, answer, "exactly that" if right else "another"
        )
    digest = (sha256_of_file(path) if path.is_file() else records.digest)[:12]
    return DataResult(
        path.name,
        scores.nll.tolist(),
        scores.tokens.tolist(),
        TaskItems(path.name, EXACT_MATCH, items, version=digest),
    )
