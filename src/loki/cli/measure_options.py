"""Options of what is measured, shared by `loki compare`, `loki evaluate` and `loki ablate`."""

from dataclasses import dataclass
from pathlib import Path

from loki.errors import LokiError
from loki.evaluation.options import MeasureOptions, TaskOptions


@dataclass(frozen=True)
class Measured:
    """What is measured, in the words of the command line.

    Attributes:
        text: text file, or JSONL of {'text': ...}, to measure loss on. Repeatable. Default: a small general text.
        data: training data, as for `loki train`: loss and exact match of the answers.
        chat_template: file with a Jinja chat template for --data, or hermes. Default: the model's own; to compare, the
            one that the new model was trained with.
        tasks: tasks of lm-evaluation-harness, separated by commas (extra `eval`).
        suite: a set of tasks: paper (triviaqa, gsm8k, hellaswag, winogrande, humaneval, ifeval).
        metric: TASK=METRIC: what a task is scored by, as in hellaswag=acc. Repeatable.
        include_path: folder with YAML files of your own tasks.
        limit: only the first so many items of every task.
        num_fewshot: examples in the prompt. Default: as the task says.
        apply_chat_template: ask the tasks' questions in the model's chat template.
        batch_size: questions of a task per forward pass.
        window: tokens per window of text; longer texts are split.
        dtype: type to compute in: auto (the checkpoint's; float32 on a CPU, where that is faster), float32, bfloat16
            or float16.
        device: where to compute: auto, cpu, mps, cuda or cuda:N.
        trust_remote_code: run Python code that the model brings along.
    """

    text: list[Path] | None = None
    data: Path | None = None
    chat_template: str | None = None
    tasks: str | None = None
    suite: str | None = None
    metric: list[str] | None = None
    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    batch_size: int = TaskOptions.batch_size
    window: int = MeasureOptions.window
    dtype: str = MeasureOptions.dtype
    device: str = MeasureOptions.device
    trust_remote_code: bool = MeasureOptions.trust_remote_code

    def options(self) -> MeasureOptions:
        """The options as the library takes them.

        Raises:
            LokiError: if tasks are named twice, a suite is not known, or a metric is not written as TASK=METRIC.
        """
        from loki.evaluation.harness import tasks_of_suite

        names = [name.strip() for name in (self.tasks or "").split(",") if name.strip()]
        names += [name for name in (tasks_of_suite(self.suite) if self.suite else ()) if name not in names]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise LokiError(f"--tasks names {twice} twice: name each once")
        if (self.include_path is not None or self.limit is not None or self.num_fewshot is not None) and not names:
            raise LokiError("--include-path, --limit and --num-fewshot say how tasks are run: name some with --tasks")
        return MeasureOptions(
            texts=tuple(self.text or ()),
            data=self.data,
            chat_template=self.chat_template,
            tasks=TaskOptions(
                tuple(names),
                self.include_path,
                self.limit,
                self.num_fewshot,
                self.apply_chat_template,
                self.batch_size,
            ),
            metrics=dict(_metric(text) for text in self.metric or ()),
            window=self.window,
            dtype=self.dtype,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
        )


def _metric(text: str) -> tuple[str, str]:
    """The task of TASK=METRIC, and the metric with its filter, as lm-evaluation-harness writes it."""
    task, equals, metric = text.partition("=")
    if not (task and equals and metric):
        raise LokiError(f"--metric {text!r} is not understood: write TASK=METRIC, as in hellaswag=acc")
    return task, metric if "," in metric else f"{metric},none"
