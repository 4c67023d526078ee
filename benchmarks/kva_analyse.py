"""What a whole analysis costs beside the engine, and what a second process brings."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import torch
from kva_shapes import Shape
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from loki.analysis.assemble import assemble
from loki.analysis.batches import auto_batch_size
from loki.analysis.job import Job
from loki.analysis.options import AnalysisOptions
from loki.analysis.runner import run
from loki.analysis.work_folder import WorkFolder
from loki.artefacts.provenance import Provenance
from loki.calibration.samples import Sample
from loki.kva import AttributionSettings
from loki.ranks import Ranks


def analyse_whole(shape: Shape, model: PreTrainedModel, definition: str, count: int) -> None:
    """An analysis of `count` prompts, from the first batch to the finished scores file; only loading is left out."""
    settings = AttributionSettings(definition, engine="fast")
    samples = [Sample(f"random:{index}", "", ids, None) for index, ids in enumerate(shape.prompts(count))]
    said: dict[str, Any] = {
        name: str(value) if isinstance(value, str) else value
        for name, value in vars(settings).items()
        if name in Provenance.__dataclass_fields__
    }
    job = Job(
        directory=Mock(load=Mock(return_value=model)),
        settings=settings,
        provenance=Provenance(
            **said,
            model="random",
            model_fingerprint="",
            dtype=str(shape.dtype).removeprefix("torch."),
            source="random",
            source_digest="",
            versions={},
        ),
        samples=samples,
        layers=shape.config.num_hidden_layers,
        hidden=shape.config.hidden_size,
        options=AnalysisOptions(batch_size=auto_batch_size([shape.tokens], shape.device)),
        device=torch.device(shape.device),
    )
    with tempfile.TemporaryDirectory() as folder:
        work = WorkFolder(Path(folder, "scores.h5.partial"))
        with work.hold():
            work.begin({}, overwrite=False)
            work.record({})
            batches = job.batches()
            outcome = run(job, batches, work, Ranks(0, 1), log=None, rule=None, progress=None)
            assemble(job, batches, outcome.batches, work, Path(folder, "scores.h5"))
            work.remove()


def processes_together(shape: Shape, few: int, many: int) -> float:
    """How many times the samples per second of one single-threaded process two of them reach on two cores.

    From the additional time that more samples take, so that neither start-up nor loading counts.
    """
    with _saved(shape) as model:
        rates = []
        for processes in (1, 2):
            seconds = [_analysis_seconds(shape, model, processes, count) for count in (few, many)]
            rates.append((many - few) / (seconds[1] - seconds[0]))
    return rates[1] / rates[0]


def _analysis_seconds(shape: Shape, model: Path, processes: int, count: int) -> float:
    data, output = model.parent / "prompts.jsonl", model.parent / "scores.h5"
    data.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in shape.prompts(count)))
    launcher: Sequence[object] = ()
    if processes > 1:
        launcher = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", processes)
        launcher = (*launcher, "--main_process_port", 0, "-m")
    words = (*launcher, "loki", "analyse", model, "--data", data, "--output", output, "--overwrite", "--batch-size", 4)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *map(str, words)], env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


@contextmanager
def _saved(shape: Shape) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "model")
        shape.model().save_pretrained(directory)
        words = Tokenizer(WordLevel({"<unk>": 0, "word": 1}, unk_token="<unk>"))
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(directory)
        yield directory
