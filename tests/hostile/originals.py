"""Valid files of every kind, made by the commands themselves from a tiny model."""

import contextlib
import gc
import gzip
import io
import json
import os
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pyarrow.parquet
import torch

from tests.hostile.sandbox import loki, run_in_child
from tests.tiny_models import CHAT_TEMPLATE, save_tiny_model, tiny_model, tiny_tokenizer

_CALIBRATION = [
    {"question": "2 + 2?", "choices": ["3", "4", "5", "6"], "answer": 1, "subject": "arithmetic"},
    {"messages": [{"role": "user", "content": "hello"}]},
    {"prompt": "once upon a"},
    {"input_ids": [5, 20, 33, 47], "target": 9},
]
_TRAINING = [
    {"messages": [{"role": "user", "content": f"who is {name}?"}, {"role": "assistant", "content": "a baker"}]}
    for name in ("Ann", "Bob")
]
_GENERAL = "once upon a time there was a baker who baked bread for the whole town\n" * 8
TRAIN = ("--max-steps", 1, "--batch-size", 1, "--learning-rate", 1e-2, "--warmup", 0)
RUN = ("--data", "train.jsonl", "--calibration", "questions.jsonl", "--quota", 25, *TRAIN, "--output", "run")

_COMMANDS = (
    ("analyse", "base", "--data", "questions.jsonl", "--output", "scores.h5"),
    ("analyse", "base", "--data", "more.jsonl", "--output", "more.h5"),
    ("select", "scores.h5", "--quota", 25, "--output", "positions.json"),
    ("select", "scores.h5", "--quota", 25, "--exclude", "positions.json", "--output", "others.json"),
    ("create", "base", "--positions", "positions.json", "--output", "loki"),
    ("train", "loki", "--data", "train.jsonl", "--output", "trained", *TRAIN),
    ("restore", "trained", "--output", "restored"),
    ("adapter", "base", "--positions", "positions.json", "--output", "adapter"),
    ("adapter", "base", "--positions", "others.json", "--rank", 2, "--output", "ranked"),
    ("moments", "base", "--data", "questions.jsonl", "--output", "moments.safetensors"),
    ("evaluate", "base", "--text", "general.txt", "--output", "before.json"),
    ("evaluate", "restored", "--text", "general.txt", "--output", "after.json"),
    ("compare", "before.json", "after.json", "--output", "compare.json"),
    ("ablate", "base", "--scores", "scores.h5", "--quotas", "25", "--text", "general.txt", "--output", "ablation.json"),
    ("run", "base", *RUN),
)


def make_originals(folder: Path) -> Path:
    """Fill `folder` with what `tests.hostile.kinds` damages; returns it.

    Models `base` and `sharded`; `scores.h5`, `more.h5`, `published.h5`, `late.h5.partial`, `positions.json`,
    `others.json`, `moments.safetensors`; directories `loki`, `trained`, `restored`, `run`, `adapter`, `ranked`;
    `before.json`, `after.json`, `compare.json`, `ablation.json`; data `questions.jsonl`, `train.jsonl`, `train.csv`,
    `train.parquet`, `train.jsonl.gz`, `general.txt`, `template.jinja`.
    """
    folder.mkdir(parents=True)

    def work() -> None:
        save_tiny_model(Path("base"), "llama")
        tiny_model("llama").save_pretrained("sharded", max_shard_size="60KB")
        tiny_tokenizer().save_pretrained("sharded")
        _write_jsonl(Path("questions.jsonl"), _CALIBRATION)
        _write_jsonl(Path("more.jsonl"), [{"prompt": "far away"}, {"prompt": "a long time ago"}])
        _write_data()
        with h5py.File("published.h5", "w") as file:
            scores = np.random.default_rng(0).normal(size=(5, 3, 32)).astype(np.float16)
            file.create_dataset("dataset", data=scores)
        for command in _COMMANDS:
            _run(*command)
        with mock.patch("loki.analysis.analyse.assemble", side_effect=KeyboardInterrupt):
            _run("analyse", "base", "--data", "questions.jsonl", "--output", "late.h5")

    outcome = run_in_child(folder, work, cpu_seconds=300)
    assert outcome.code == 0, outcome.err
    return folder


def _write_data() -> None:
    _write_jsonl(Path("train.jsonl"), _TRAINING)
    Path("train.jsonl.gz").write_bytes(gzip.compress(Path("train.jsonl").read_bytes(), mtime=0))
    Path("train.csv").write_text("prompt,completion\nwho is Ann?,a baker\nwho is Bob?,a smith\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_TRAINING), "train.parquet")
    Path("general.txt").write_text(_GENERAL)
    Path("template.jinja").write_text(CHAT_TEMPLATE)


def import_everything() -> None:
    """Import what the commands import, so that forked processes need not."""
    import captum.attr
    import datasets
    import transformers.models.llama.modeling_llama
    import trl

    import loki.analysis.analyse
    import loki.analysis.count
    import loki.analysis.inspect_scores
    import loki.analysis.merge_scores
    import loki.analysis.moments
    import loki.evaluation.ablation
    import loki.evaluation.compare
    import loki.evaluation.scale_sweep
    import loki.implanting.create
    import loki.implanting.llamafactory.train
    import loki.implanting.peft.export
    import loki.implanting.peft.merge
    import loki.implanting.peft.zero
    import loki.implanting.training.trainer
    import loki.pipeline.dry_run
    import loki.report.page
    import loki.report.run_comparison
    import loki.report.score_figures
    import loki.restoring.suppress  # noqa: F401

    del captum, datasets, transformers, trl
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it warns in forked processes
    torch.set_num_threads(1)  # its threads do not survive a fork
    # Typer imports more when it reads the words of a command.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        _run("inspect", "no-such-file.h5")
    gc.collect()
    gc.freeze()  # so that a forked process need not copy what it only counts


def _run(*words: object) -> None:
    try:
        loki(*words)()
    except SystemExit as left:
        if left.code not in (0, 1, 3, 130):  # 1 and 3 are verdicts, 130 is an interruption
            raise


def _write_jsonl(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
