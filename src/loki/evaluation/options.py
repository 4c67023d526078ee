"""What is measured, and how: the one place where these defaults stand."""

from dataclasses import dataclass, field
from pathlib import Path

from loki.errors import require, require_counts
from loki.metrics import DEFAULT_WINDOW

_MOST_SHOTS = 1_000


@dataclass(frozen=True)
class TaskOptions:
    """Which tasks are run, and how.

    Attributes:
        tasks: names, of lm-evaluation-harness or of YAML files in `include_path`.
        include_path: folder with YAML files of tasks; None has only the harness' own.
        limit: only so many items of every task; None takes all.
        fewshot: examples in the prompt; None leaves it to the task.
        apply_chat_template: ask in the model's chat template.
        batch_size: questions per forward pass.

    Raises:
        LokiError: if a number is out of range.
    """

    tasks: tuple[str, ...] = ()
    include_path: Path | None = None
    limit: int | None = None
    fewshot: int | None = None
    apply_chat_template: bool = False
    batch_size: int = 8

    def __post_init__(self) -> None:
        require_counts(self, "limit", "batch_size")
        require(self, "fewshot", self.fewshot is None or 0 <= self.fewshot <= _MOST_SHOTS, f"from 0 to {_MOST_SHOTS}")


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured, and how.

    Attributes:
        texts: files with text; an empty tuple means the general text of the package, None measures none.
        data: training data, of which loss and exact match are measured; None measures none.
        tasks: tasks of lm-evaluation-harness.
        metrics: which metric of a task counts, by task; else that of the paper, or the task's first.
        window: tokens per window of text.
        max_length: the most tokens of an example of `data`.
        dtype: type to compute in; `auto` is the checkpoint's on a GPU and float32 on a CPU, which is faster and exact.
        device: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`.
        trust_remote_code: run Python code that the models bring along.
        chat_template: renders the conversations of `data`: Jinja file, or the name of a template that LoKI brings.
            None: the model's own; in a comparison the one that the new model brings, for the base as well.
    """

    texts: tuple[Path, ...] | None = ()
    data: Path | None = None
    tasks: TaskOptions = field(default_factory=TaskOptions)
    metrics: dict[str, str] = field(default_factory=dict)
    window: int = DEFAULT_WINDOW
    max_length: int = 1024
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    chat_template: str | None = None

    @property
    def inputs(self) -> list[Path]:
        """The files and folders that are read beside the models."""
        named = [*(self.texts or ()), self.data, self.tasks.include_path]
        return [path for path in named if path is not None]

    def __post_init__(self) -> None:
        require_counts(self, "window", "max_length")
