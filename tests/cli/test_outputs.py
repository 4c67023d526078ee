"""No command writes over, into or around anything it reads, however the output is called."""

import hashlib
import importlib
import inspect
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from typer.models import OptionInfo

from loki.artefacts.positions import write_positions
from loki.cli.app import app
from loki.cli.main import COMMANDS
from loki.demo.demo import FACTS
from loki.files import write_json
from loki.implanting.create import create_loki_model
from loki.implanting.peft.zero import save_zero_adapter
from tests.artefacts.scores_files import write_scores
from tests.cli.running import Shell


@dataclass(frozen=True)
class Row:
    """A command that writes.

    Attributes:
        words: its words, with inputs as `{name}`; output and `--overwrite` are added.
        output: the option that names the output.
        ending: of an output that it accepts.
    """

    words: str
    output: str = "--output"
    ending: str = ""


_MEASURED = "--text {text} --data {data} --tasks quiz --include-path {tasks}"
_TRAINED = "{model} --positions {positions} --data {data} --eval-data {held_out} --chat-template {template}"
ROWS = {
    "analyse": Row("{model} --data {calibration}"),
    "sample": Row("{model}"),
    "moments": Row("{model} --data {data}"),
    "merge": Row("{scores} {other_scores}"),
    "select": Row("{scores} --quota 10 --exclude {positions}"),
    "select, by weights": Row("--strategy wanda --model {model} --moments {moments} --quota 10 --exclude {positions}"),
    "select, by a task": Row("{scores} --strategy task_aware --model {model} --task {data} --quota 10"),
    "create": Row("{model} --positions {positions} --moments {moments} --protect 0.5"),
    "adapter": Row("{model} --positions {positions} --moments {moments} --protect 0.5"),
    "tune": Row(_TRAINED),
    "train": Row(f"{_TRAINED} --keep {{text}} --replay {{replay}}"),
    "restore": Row("{adapter} --base {model} --positions {positions}"),
    "restore, a LoKI model": Row("{loki_model} --base {model} --positions {positions}"),
    "scale": Row("{adapter} --base {model} --data {data} --keep {text}", "--plot"),
    "scale, the base unnamed": Row("{loki_model} --data {data} --keep {text}", "--plot"),
    "compare": Row(f"{{model}} {{loki_model}} {{adapter}} --positions {{positions}} {_MEASURED}"),
    "evaluate": Row(f"{{adapter}} {_MEASURED}"),
    "ablate": Row("{model} --scores {scores} --text {text} --tasks quiz --include-path {tasks}"),
    "plot": Row("layers {picture}", ending=".png"),
    "report": Row("{run} --data {data}", ending=".html"),
    "suppress": Row("{model} --positions {positions}"),
    "export_lora": Row("{adapter} --full-rows"),
    "merge_adapters": Row("{adapter} {other_adapter}"),
    "run": Row(
        "{model} --data {data} --calibration {calibration} --eval-data {held_out} --chat-template {template} "
        "--protect-data {text} --keep {text} --replay {replay} --config {config}"
    ),
}
QUICK = {"create", "merge", "plot", "merge_adapters"}
WRITES_NOTHING = {"inspect", "data", "verify"}
READS_NOTHING = {"demo"}  # of the user's
# Names of the parameters that say what is read, where their type is no path, and of those that say something else.
READ = {"model", "data", "eval_data", "keep", "replay", "base", "task", "calibration", "protect_data", "new"}
NOT_READ = {"output", "plot", "llamafactory_python"}
FILES = {
    "model": "model",
    "loki_model": "loki_model",
    "adapter": "adapter",
    "other_adapter": "adapter",
    "calibration": "questions.jsonl",
    "data": "data.jsonl",
    "held_out": "held_out.jsonl",
    "replay": "replay.jsonl",
    "text": "text.txt",
    "tasks": "tasks",
    "template": "template.jinja",
    "config": "config.yaml",
    "scores": "scores.h5",
    "other_scores": "scores.h5",
    "picture": "scores.png",
    "moments": "moments.safetensors",
    "positions": "positions.json",
    "run": "run",
}


@pytest.fixture(scope="module")
def prepared(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of input, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in FILES:
        (folder / name).mkdir()
    files = {name: folder / name / file for name, file in FILES.items()}
    shutil.copytree(llama_dir, files["model"])
    files["calibration"].write_text('{"prompt": "Who?"}\n')
    for name in ("data", "held_out", "replay"):
        files[name].write_text('{"prompt": "Who?", "completion": " Ada."}\n')
    files["text"].write_text("Nothing in particular.")
    files["template"].write_text("{{ messages[0].content }}")
    files["config"].write_text("quota: 10\n")
    files["moments"].write_bytes(b"moments")
    files["tasks"].mkdir()
    (files["tasks"] / "quiz.yaml").write_text("task: quiz\n")
    for first, name in ((0, "scores"), (10, "other_scores"), (20, "picture")):
        write_scores(files[name], np.ones((2, 3, 32), dtype=np.float32), first=first)
    write_positions(files["positions"], [[1], [2], [3]])
    create_loki_model(model_name=files["model"], target_pos_path=files["positions"], save_dir=files["loki_model"])
    for name, row in (("adapter", 4), ("other_adapter", 5)):
        save_zero_adapter(files["model"], [[row], [row], [row]], files[name])
    write_json(files["run"] / "run.json", {"model": str(files["model"])})
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "folder"
        for file in sorted(folder.rglob("*"))
    }


def inputs_of(row: Row) -> list[str]:
    """The inputs that a row names, and what those name themselves."""
    named = [name for name in FILES if f"{{{name}}}" in row.words]
    return named + (["model"] if {"adapter", "loki_model", "run"} & {*named} and "model" not in named else [])


def places(path: Path, ending: str, tmp_path: Path) -> dict[str, Path]:
    """The input itself by another name, a folder around it and a place inside."""
    (tmp_path / f"link{ending}").symlink_to(path)
    found = {"link": tmp_path / f"link{ending}"}
    if not ending:
        found["around"] = path.parent
    # Into a run directory its page belongs.
    return found | ({"inside": path / f"new{ending}"} if path.is_dir() and path.name != FILES["run"] else {})


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ROWS])
def test_inputs_survive(prepared: Path, tmp_path: Path, shell: Shell, name: str) -> None:
    row, command = ROWS[name], name.partition(",")[0].replace("_", "-")
    inputs = {given: prepared / given / file for given, file in FILES.items()}
    words = [word.format(**inputs) for word in row.words.split()]
    before, wrong = contents(prepared), []
    for given in inputs_of(row):
        (tmp_path / given).mkdir()
        for place, output in places(inputs[given], row.ending, tmp_path / given).items():
            outcome = shell(command, *words, row.output, output, "--overwrite")
            refused = any(said in outcome.err for said in ("the input", "is a directory", "is a file"))
            if (outcome.code, outcome.err.count("\n")) != (2, 1) or not refused or contents(prepared) != before:
                wrong.append((given, place, outcome))
    assert wrong == []


def parameters(command: str) -> dict[str, tuple[str, bool]]:
    """The type of every parameter of a command, as text, and whether it is an option."""
    infos = {info.name or info.callback.__name__: info.callback for info in app.registered_commands if info.callback}
    found = {}
    for name, parameter in inspect.signature(infos[command]).parameters.items():
        kind, *how = get_args(parameter.annotation) or (parameter.annotation,)
        found[name] = (str(kind), any(isinstance(one, OptionInfo) for one in how))
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_the_table_is_complete(command: str) -> None:
    importlib.import_module(f"loki.cli.{command}")
    given = parameters(command)
    if command in WRITES_NOTHING:
        assert not {"output", "plot", "overwrite"} & {*given}
        return
    if command in READS_NOTHING:
        return
    words = {word for name, row in ROWS.items() if name.partition(",")[0] == command for word in row.words.split()}
    read = {name for name, (kind, option) in given.items() if option and (name in READ or "Path" in kind)}
    assert read - NOT_READ - {word.removeprefix("--").replace("-", "_") for word in words} == set()


def test_overwriting_a_demo_spares_all_else(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "mine" / "base").mkdir(parents=True)
    (tmp_path / "mine" / "base" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    refused = shell("demo", "--output", tmp_path / "mine", "--overwrite")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "holds no demo" in refused.err
    assert contents(tmp_path) == before
    assert not (tmp_path / "mine" / FACTS).exists()


def test_the_log_is_added_to_no_other_file(shell: Shell, tmp_path: Path) -> None:
    data = tmp_path / "scores.json"
    data.write_text("[[1], [2]]\n")
    refused = shell("inspect", tmp_path / "scores.h5", "--log-file", data)
    assert (refused.code, data.read_text()) == (2, "[[1], [2]]\n")
    assert str(data) in refused.err
