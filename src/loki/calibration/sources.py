"""Loading calibration data: a name or a path becomes a `CalibrationSet`."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from loki.calibration.encoding import encode_records
from loki.calibration.jsonl import read_jsonl
from loki.calibration.mmlu import TABLE_SUFFIXES, read_mmlu_copy, read_mmlu_hub
from loki.calibration.records import Record
from loki.calibration.samples import CalibrationSet, digest_of
from loki.calibration.subset import choose_samples, choose_subjects
from loki.calibration.text_records import read_text_file, split_texts
from loki.errors import LokiError


def load_calibration(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_positions: int | None,
    vocab_size: int,
    subjects: Sequence[str] | None = None,
    samples_per_subject: int | None = None,
    seed: int = 0,
) -> CalibrationSet:
    """Load and encode calibration prompts.

    Args:
        source: `mmlu` (the hub's data set), a local copy of it (see `read_mmlu_copy`), a JSONL file (see
            `read_jsonl`), or a text (`.txt`, see `split_texts`).
        tokenizer: of the model to be analysed.
        max_positions: the longest prompt the model takes, in tokens; None for no limit.
        vocab_size: number of token ids the model knows.
        subjects: take only these (default or empty: all).
        samples_per_subject: draw this many of every subject (default: all).
        seed: of that draw.

    Raises:
        LokiError: if the source does not exist or cannot be read, or a sample cannot be used; one line that names it.
    """
    records = split_texts(_read(source), tokenizer, max_positions)
    if subjects:
        records = choose_subjects(records, subjects)
    if samples_per_subject is not None:
        records = choose_samples(records, samples_per_subject, seed)
    samples = encode_records(records, tokenizer, max_positions=max_positions, vocab_size=vocab_size)
    return CalibrationSet(source, digest_of(samples), samples)


def _read(source: str) -> list[Record]:
    if source == "mmlu":
        return read_mmlu_hub()
    path = Path(source)
    if path.is_dir() or (path.is_file() and path.suffix in TABLE_SUFFIXES):
        return read_mmlu_copy(path)
    if path.is_file():
        return read_text_file(path) if path.suffix == ".txt" else read_jsonl(path)
    raise LokiError(f"data {source} does not exist: give mmlu, a local copy of MMLU, a JSONL file, or a text (.txt)")
