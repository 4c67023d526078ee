"""Options of what is measured, shared by `loki compare`, `loki evaluate` and `loki ablate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loki.errors import LokiError

if TYPE_CHECKING:
    from loki.evaluation.measure import MeasureOptions

Texts = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        help="Text file, or JSONL of {'text': ...}, to measure loss on. Repeatable. Default: a small general text.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Training data, as for `loki train`: loss and exact match of the answers."),
]
Tasks = Annotated[
    str | None, typer.Option("--tasks", help="Tasks of lm-evaluation-harness, separated by commas (extra `eval`).")
]
Suite = Annotated[
    str | None,
    typer.Option("--suite", help="A set of tasks: paper (triviaqa, gsm8k, hellaswag, winogrande, humaneval, ifeval)."),
]
Metric = Annotated[
    list[str] | None,
    typer.Option("--metric", help="TASK=METRIC: what a task is scored by, as in hellaswag=acc. Repeatable."),
]
IncludePath = Annotated[Path | None, typer.Option("--include-path", help="Folder with YAML files of your own tasks.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Only the first so many items of every task.")]
FewShot = Annotated[
    int | None, typer.Option("--num-fewshot", help="Examples in the prompt. Default: as the task says.")
]
ChatTemplate = Annotated[
    bool, typer.Option("--apply-chat-template", help="Ask the tasks' questions in the model's chat template.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Questions of a task per forward pass.")]
Window = Annotated[int, typer.Option("--window", help="Tokens per window of text; longer texts are split.")]
DType = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto (the checkpoint's; float32 on a CPU, where that is faster), float32, bfloat16 or float16.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]


def measure_options(
    *,
    texts: list[Path] | None,
    data: Path | None,
    tasks: str | None,
    suite: str | None,
    metrics: list[str] | None,
    include_path: Path | None,
    limit: int | None,
    fewshot: int | None,
    chat_template: bool,
    batch_size: int,
    window: int,
    dtype: str,
    device: str,
) -> "MeasureOptions":
    """The options as the library takes them.

    Raises:
        LokiError: if tasks are named twice, a suite is not known, or a metric is not written as TASK=METRIC.
    """
    from loki.evaluation.harness import TaskOptions, tasks_of_suite
    from loki.evaluation.measure import MeasureOptions

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    names += [name for name in (tasks_of_suite(suite) if suite else ()) if name not in names]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LokiError(f"--tasks names {twice} twice: name each once")
    if (include_path is not None or limit is not None or fewshot is not None) and not names:
        raise LokiError("--include-path, --limit and --num-fewshot say how tasks are run: name some with --tasks")
    chosen = {}
    for text in metrics or []:
        task, equals, metric = text.partition("=")
        if not (task and equals and metric):
            raise LokiError(f"--metric {text!r} is not understood: write TASK=METRIC, as in hellaswag=acc")
        chosen[task] = metric if "," in metric else f"{metric},none"
    return MeasureOptions(
        texts=tuple(texts or ()),
        data=data,
        tasks=TaskOptions(tuple(names), include_path, limit, fewshot, chat_template, batch_size),
        metrics=chosen,
        window=window,
        dtype=dtype,
        device=device,
    )


def parse_percent(text: str, option: str) -> float:
    """A percentage: `1%` or `1`.

    Raises:
        LokiError: if `text` is something else, or negative.
    """
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise LokiError(f"{option} {text!r} is no percentage: write 1% or 0.5%")
    return value
