"""The kinds of input: which file is edited, or which word, how, and which commands read it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from tests.hostile.edits import Edit, json_edits
from tests.hostile.hdf5_edits import hdf5_edits
from tests.hostile.originals import RUN, TRAIN
from tests.hostile.record_edits import record_edits, text_edits, yaml_edits
from tests.hostile.tensor_edits import tensor_edits
from tests.hostile.words import Command, make_places, option_words, path_words

ANALYSE = ("analyse", "base", "--data", "questions.jsonl", "--output", "out.h5")
ANALYSE_SHARDED = ("analyse", "sharded", "--data", "questions.jsonl", "--output", "out.h5")
CREATE = ("create", "base", "--positions", "positions.json", "--output", "out")
CREATE_SHARDED = ("create", "sharded", "--positions", "positions.json", "--output", "out")
SUPPRESS = ("suppress", "base", "--positions", "positions.json", "--output", "out")
SUPPRESS_SHARDED = ("suppress", "sharded", "--positions", "positions.json", "--output", "out")
ADAPTER = ("adapter", "base", "--positions", "positions.json", "--output", "out")
TRAIN_BASE = ("train", "base", "--positions", "positions.json", "--data", "train.jsonl", "--output", "out", *TRAIN)
TRAIN_LOKI = ("train", "loki", "--data", "train.jsonl", "--output", "out", *TRAIN)
RESTORE = ("restore", "trained", "--output", "out")
RESTORE_BASE = ("restore", "trained", "--output", "out", "--base", "base")
RESTORE_LOKI = ("restore", "loki", "--output", "out", "--allow-unchanged")
RESTORE_ADAPTER = ("restore", "adapter", "--base", "base", "--output", "out", "--allow-unchanged")
RESTORE_RANKED = ("restore", "ranked", "--base", "base", "--output", "out", "--allow-unchanged")
VERIFY = ("verify", "base", "restored", "--positions", "positions.json")
EXCLUDE = ("select", "scores.h5", "--quota", 25, "--exclude", "positions.json", "--output", "out.json")
SELECT = ("select", "scores.h5", "--quota", 25, "--output", "out.json")
INSPECT = ("inspect", "scores.h5")
MERGE = ("merge", "scores.h5", "more.h5", "--output", "out.h5")
MERGE_ADAPTERS = ("merge-adapters", "adapter", "ranked", "--output", "out")
EXPORT = ("export-lora", "ranked", "--output", "out")
AGAIN = ("train", "loki", "--data", "train.jsonl", "--output", "trained", *TRAIN)
DATA = ("data", "base", "--data", "train.jsonl")
MOMENTS = ("moments", "base", "--data", "questions.jsonl", "--output", "out.safetensors")
ANALYSE_TEXT = ("analyse", "base", "--data", "general.txt", "--definition", "sensitivity", "--output", "out.h5")
EVALUATE = ("evaluate", "base", "--text", "general.txt", "--output", "out.json")
KEEP = (*TRAIN_LOKI, "--keep", "general.txt")
PROTECT = (*CREATE, "--moments", "moments.safetensors", "--protect", 0.5)
WANDA = ("select", "--strategy", "wanda", "--model", "base", "--moments", "moments.safetensors", "--quota", 25)
WANDA += ("--output", "out.json")
RUN_AGAIN = ("run", "base", *RUN)
DRY_RUN = (*RUN_AGAIN, "--output", "out", "--dry-run")
CONFIG = ("run", "--config", "run/run.yaml", "--output", "out", "--dry-run")
REPORT = ("report", "run", "--output", "out.html", "--no-compare")
LATE = "late.h5.partial"
RESUME = ("analyse", "base", "--data", "questions.jsonl", "--output", "late.h5")
COMPARE = ("compare", "before.json", "after.json", "--output", "out.json")
PLOT_LOSS = ("plot", "loss", "trained", "--output", "out.png")
PLOT_FORGETTING = ("plot", "forgetting", "compare.json", "--output", "out.png")
PLOT_PARETO = ("plot", "pareto", "compare.json", "--output", "out.png")
PLOT_ABLATION = ("plot", "ablation", "ablation.json", "--output", "out.png")
EXPORT_FULL = ("export-lora", "adapter", "--full-rows", "--output", "out")


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        what: in words, for reports.
        command: words of the command line.
        prepare: makes it, in a folder with copies of the originals.
    """

    what: str
    command: Command
    prepare: Callable[[Path], None]


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: for the table.
        cases: from the folder of originals to a strategy of inputs.
        outputs: originals that the commands write to where they succeed.
    """

    name: str
    cases: Callable[[Path], st.SearchStrategy[Case]]
    outputs: tuple[str, ...] = ()


def _file(
    name: str,
    edited: str,
    edits: Callable[[Path], st.SearchStrategy[Edit]],
    commands: tuple[Command, ...],
    outputs: tuple[str, ...] = (),
) -> Kind:
    """The kind of a file that commands read."""

    def cases(originals: Path) -> st.SearchStrategy[Case]:
        def case(edit: Edit, command: Command) -> Case:
            return Case(f"{edited}: {edit.what}", command, lambda folder: edit.apply(folder / edited))

        return st.builds(case, edits(originals / edited), st.sampled_from(commands))

    return Kind(name, cases, outputs)


def _words(name: str, commands: st.SearchStrategy[Command]) -> Kind:
    """The kind of words on the command line."""
    return Kind(name, lambda originals: commands.map(lambda command: Case("words", command, make_places)))


_CONFIG = (
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "text_config",
    "torch_dtype",
    "auto_map",
    "id2label",
)
_ROWS = ("down_proj.weight", "embed_tokens", "q_proj", "norm")
_ADAPTER = ("auto_mapping", "peft_version", "revision", "runtime_config", "modules_to_save", "x")
_TOKENIZER = ("chat_template", "tokenizer_class", "add_bos_token", "added_tokens_decoder", "auto_map", "padding_side")
_SCORES = (SELECT, INSPECT, MERGE)


def _json(*more: str) -> Callable[[Path], st.SearchStrategy[Edit]]:
    return lambda original: json_edits(original, more)


def _tensors(*names: str) -> Callable[[Path], st.SearchStrategy[Edit]]:
    return lambda original: tensor_edits(original, names)


KINDS = (
    _file("positions", "positions.json", _json(), (EXCLUDE, CREATE, SUPPRESS, VERIFY, ADAPTER, TRAIN_BASE)),
    _file(
        "config.json",
        "base/config.json",
        _json(*_CONFIG),
        (ANALYSE, CREATE, SUPPRESS, VERIFY, ADAPTER, TRAIN_BASE, RESTORE_ADAPTER, RESTORE_BASE),
    ),
    _file(
        "safetensors",
        "base/model.safetensors",
        _tensors(*_ROWS),
        (ANALYSE, CREATE, SUPPRESS, VERIFY, ADAPTER, TRAIN_BASE, RESTORE_ADAPTER, RESTORE_BASE),
    ),
    _file("restored weights", "restored/model.safetensors", _tensors(*_ROWS), (VERIFY,)),
    _file("trained weights", "trained/model.safetensors", _tensors(*_ROWS), (RESTORE,)),
    _file(
        "shard index",
        "sharded/model.safetensors.index.json",
        _json("x"),
        (CREATE_SHARDED, SUPPRESS_SHARDED, ANALYSE_SHARDED),
    ),
    _file("tokenizer.json", "base/tokenizer.json", _json(), (ANALYSE, TRAIN_BASE, CREATE)),
    _file(
        "tokenizer_config.json", "base/tokenizer_config.json", _json(*_TOKENIZER), (ANALYSE, TRAIN_BASE, RESTORE_BASE)
    ),
    _file(
        "generation_config.json",
        "base/generation_config.json",
        _json("temperature", "x"),
        (ANALYSE, CREATE, TRAIN_BASE),
    ),
    _file("trained tokenizer", "trained/tokenizer_config.json", _json(*_TOKENIZER), (RESTORE,)),
    _file("trained generation", "trained/generation_config.json", _json("temperature", "x"), (RESTORE,)),
    _file("scores", "scores.h5", lambda original: hdf5_edits(original), _SCORES),
    _file(
        "scores, to add to",
        "scores.h5",
        lambda original: hdf5_edits(original),
        (
            ("analyse", "base", "--data", "questions.jsonl", "--output", "scores.h5", "--write-mode", "a"),
            ("analyse", "base", "--data", "questions.jsonl", "--output", "scores.h5"),
        ),
        ("scores.h5",),
    ),
    _file(
        "published scores",
        "published.h5",
        lambda original: hdf5_edits(original),
        (
            ("select", "published.h5", "--quota", 25, "--output", "out.json"),
            ("inspect", "published.h5"),
        ),
    ),
    _file(
        "adapter configuration",
        "adapter/adapter_config.json",
        _json(*_ADAPTER),
        (RESTORE_ADAPTER, MERGE_ADAPTERS, EXPORT_FULL),
    ),
    _file(
        "ranked configuration", "ranked/adapter_config.json", _json(*_ADAPTER), (RESTORE_RANKED, MERGE_ADAPTERS, EXPORT)
    ),
    _file(
        "adapter weights",
        "adapter/adapter_model.safetensors",
        _tensors("layers.0", "layers.1"),
        (RESTORE_ADAPTER, MERGE_ADAPTERS, EXPORT_FULL),
    ),
    _file(
        "ranked weights",
        "ranked/adapter_model.safetensors",
        _tensors("loki_A", "loki_B"),
        (RESTORE_RANKED, MERGE_ADAPTERS, EXPORT),
    ),
    _file("LoKI configuration", "loki/config.json", _json(*_CONFIG), (TRAIN_LOKI, RESTORE_LOKI)),
    _file("trained configuration", "trained/config.json", _json(*_CONFIG), (RESTORE,)),
    _file("training record", "trained/training.json", _json("finished"), (AGAIN,), ("trained",)),
    _file("state of the trainer", "trained/trainer_state.json", _json(), (PLOT_LOSS,)),
    _file("training data", "train.jsonl", record_edits, (TRAIN_BASE, DATA, TRAIN_LOKI, DRY_RUN)),
    _file("table", "train.csv", text_edits, (("data", "base", "--data", "train.csv"),)),
    _file("parquet", "train.parquet", text_edits, (("data", "base", "--data", "train.parquet"),)),
    _file("gzip", "train.jsonl.gz", text_edits, (("data", "base", "--data", "train.jsonl.gz"),)),
    _file("chat template", "template.jinja", text_edits, ((*DATA, "--chat-template", "template.jinja"),)),
    _file("calibration data", "questions.jsonl", record_edits, (ANALYSE, MOMENTS, DRY_RUN)),
    _file("text", "general.txt", text_edits, (ANALYSE_TEXT, EVALUATE, KEEP)),
    _file("moments", "moments.safetensors", _tensors("second_moment", "mean_square"), (PROTECT, WANDA)),
    _file("run record", "run/run.json", _json("protect"), (RUN_AGAIN, REPORT), ("run", "out.html")),
    _file("run.yaml", "run/run.yaml", yaml_edits, (CONFIG, RUN_AGAIN), ("run",)),
    _file("record of a run's training", "run/trained/training.json", _json(), (RUN_AGAIN, REPORT), ("run",)),
    _file("interrupted run", f"{LATE}/run.json", _json(), (RESUME,), ("late.h5",)),
    _file("finished batch", f"{LATE}/batches/00000000.npz", text_edits, (RESUME,), ("late.h5", LATE)),
    _file("trained record", "trained/training.json", _json(), (RESTORE,)),
    _file("evaluation", "before.json", _json("tasks"), (COMPARE,)),
    _file("comparison", "compare.json", _json(), (PLOT_FORGETTING, PLOT_PARETO)),
    _file("ablation", "ablation.json", _json(), (PLOT_ABLATION,)),
    _words("options", option_words()),
    _words("paths", path_words()),
)
