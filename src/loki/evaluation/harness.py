"""Running tasks of lm-evaluation-harness on a model in memory, with the results kept from one time to the next."""

import hashlib
import json
import logging
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.errors import LokiError, one_line
from loki.evaluation.lm_eval_results import PAPER_SUITE, Results
from loki.evaluation.options import TaskOptions
from loki.files import cache_folder, sha256_of_file, write_json

INSTALL = "pip install 'lm-eval>=0.4.10'"  # the extra `eval`; LoKI itself is on no registry
SUITES = {"paper": PAPER_SUITE}


def tasks_of_suite(suite: str) -> tuple[str, ...]:
    """The tasks of a named suite.

    Raises:
        LokiError: if there is no such suite.
    """
    if suite not in SUITES:
        raise LokiError(f"suite {suite!r} is not known: choose one of {', '.join(SUITES)}")
    return SUITES[suite]


class Harness:
    """The tasks of one comparison.

    Args:
        options: which tasks, and how.

    Attributes:
        evaluated: how many tasks were run, not found in the cache.

    Raises:
        LokiError: if the extra `eval` is not installed, a task is not known, or its data cannot be had.
    """

    def __init__(self, options: TaskOptions) -> None:
        if find_spec("lm_eval") is None:
            raise LokiError(f"--tasks needs lm-evaluation-harness, which is not installed: run {INSTALL}")
        if options.include_path is not None and not options.include_path.is_dir():
            raise LokiError(f"--include-path {options.include_path} is not a folder: name the one with the tasks' YAML")
        if options.limit is not None and options.limit < 1:
            raise LokiError(f"--limit {options.limit} leaves no item: give 1 or more")
        _quieten()
        self.options = options
        self.evaluated = 0
        self._manager = _task_manager(options)
        known = set(self._manager.all_tasks)
        if unknown := next((task for task in options.tasks if task not in known), None):
            raise LokiError(
                f"task {unknown} is not known to lm-evaluation-harness {version('lm-eval')}: check its name, or name "
                "the folder of its YAML with --include-path"
            )

    def run(self, fingerprint: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Results:
        """Results of all tasks; those that this model has answered before are read from the cache.

        Args:
            fingerprint: of the model, with all that decides its answers.
            model: a causal language model.
            tokenizer: its tokenizer.

        Raises:
            LokiError: if a task's data cannot be had, or it fails.
        """
        merged: Results = {}
        for task in self.options.tasks:
            path = cache_folder() / "tasks" / fingerprint / f"{task}-{self._task_digest(task)}.json"
            results = _kept(path)
            if results is None:
                results = self._evaluate(task, model, tokenizer)
                write_json(path, results, overwrite=True, indent=None)
                self.evaluated += 1
            for key, value in results.items():
                if isinstance(value, dict) and isinstance(merged.get(key), dict):
                    merged[key] = {**merged[key], **value}
                else:
                    merged[key] = value
        return merged

    def _evaluate(self, task: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Results:
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        try:
            # The harness notes the commit of the directory one happens to be in, and git complains where there is none.
            with patch("lm_eval.evaluator.get_git_commit_hash", return_value=None):
                results = lm_eval.simple_evaluate(
                    model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.options.batch_size),
                    tasks=[task],
                    task_manager=self._manager,
                    limit=self.options.limit,
                    num_fewshot=self.options.fewshot,
                    apply_chat_template=self.options.apply_chat_template,
                    bootstrap_iters=0,  # intervals are made of the items
                    confirm_run_unsafe_code=os.environ.get("HF_ALLOW_CODE_EVAL") == "1",
                )
        except LokiError:
            raise
        except Exception as error:  # the harness raises whatever its tasks and their data raise
            raise LokiError(f"task {task} cannot be evaluated ({type(error).__name__}: {one_line(error)})") from error
        plain: Results = json.loads(json.dumps(results, default=str))
        return plain

    def _task_digest(self, task: str) -> str:
        """Hash of all that decides what a task asks and how it is scored."""
        digest = hashlib.sha256(version("lm-eval").encode())
        config: Any = self._manager.task_index.get(task)
        source = getattr(config, "yaml_path", None) or (config.get("yaml_path") if isinstance(config, dict) else None)
        if source and Path(str(source)).is_file():
            folder = Path(str(source)).parent
            for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.py")]):
                digest.update(sha256_of_file(file).encode())
            for data in _local_files(Path(str(source)).read_text(encoding="utf-8")):
                digest.update(sha256_of_file(data).encode())
        settings = (self.options.limit, self.options.fewshot, self.options.apply_chat_template)
        digest.update(f"{task} {settings}".encode())
        return digest.hexdigest()[:16]


def _task_manager(options: TaskOptions) -> Any:
    """The harness' index of tasks; its own thousands of files are read only where the user's folder lacks a task."""
    from lm_eval.tasks import TaskManager

    if options.include_path is None:
        return TaskManager()
    folder = str(options.include_path)
    own = TaskManager(include_path=folder, include_defaults=False)
    # A group may name the harness' own tasks.
    return own if set(options.tasks) <= set(own.all_subtasks) else TaskManager(include_path=folder)


def _kept(path: Path) -> Results | None:
    """Results that an earlier evaluation left; None if there are none, or they are damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _local_files(text: str) -> list[Path]:
    """Files named in a task's YAML, such as those of `data_files`."""
    words = (word.strip("'\"[],") for word in text.split())
    return [Path(word) for word in words if "/" in word and Path(word).is_file()]


def _quieten() -> None:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("lm-eval").setLevel(logging.ERROR)
