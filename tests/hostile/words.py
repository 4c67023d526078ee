"""Hostile words on the command line: values of options, and what a path may lead to."""

import importlib
import os
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.hostile.originals import RUN, TRAIN

Command = tuple[object, ...]

_PROTECTED = ("--positions", "positions.json", "--moments", "moments.safetensors", "--output", "out")
_SCALED = ("--data", "train.jsonl", "--keep", "general.txt", "--scales", "1", "--plot", "out.png")
_TRAINED = ("--positions", "positions.json", "--data", "train.jsonl", "--output", "out", *TRAIN)

# Every command but `demo` and `tune` (whose options are those of `train`, and which takes seconds) with what it needs;
# an option that is given again overrides the first.
COMMANDS: dict[str, Command] = {
    "analyse": ("analyse", "base", "--data", "questions.jsonl", "--output", "out.h5"),
    "moments": ("moments", "base", "--data", "questions.jsonl", "--output", "out.safetensors"),
    "merge": ("merge", "scores.h5", "more.h5", "--output", "out.h5"),
    "inspect": ("inspect", "scores.h5"),
    "select": ("select", "scores.h5", "--quota", 25, "--output", "out.json"),
    "create": (
        "create",
        "base",
        "--positions",
        "positions.json",
        "--moments",
        "moments.safetensors",
        "--output",
        "out",
    ),
    "adapter": ("adapter", "base", "--positions", "positions.json", "--output", "out"),
    "data": ("data", "base", "--data", "train.jsonl"),
    "train": ("train", "base", *_TRAINED),
    "restore": ("restore", "trained", "--output", "out"),
    "scale": (
        "scale",
        "trained",
        "--data",
        "train.jsonl",
        "--keep",
        "general.txt",
        "--scales",
        "1",
        "--plot",
        "out.png",
    ),
    "verify": ("verify", "base", "restored", "--positions", "positions.json"),
    "compare": ("compare", "base", "restored", "--text", "general.txt", "--output", "out.json"),
    "evaluate": ("evaluate", "base", "--text", "general.txt", "--output", "out.json"),
    "ablate": ("ablate", "base", "--scores", "scores.h5", "--quotas", "25", "--text", "general.txt"),
    "plot": ("plot", "layers", "scores.h5", "--output", "out.png"),
    "report": ("report", "run", "--output", "out.html", "--no-compare"),
    "suppress": ("suppress", "base", "--positions", "positions.json", "--output", "out"),
    "export-lora": ("export-lora", "ranked", "--output", "out"),
    "merge-adapters": ("merge-adapters", "adapter", "ranked", "--output", "out"),
    "run": ("run", "base", *RUN, "--output", "out", "--dry-run"),
}

# Never given: the first runs what it names; the index of tasks alone takes ten seconds, once a task is named.
_LEFT_OUT = ("--llamafactory-python", "--tasks", "--suite")
_NUMBERS = ("0", "-1", "1", "2", "3", "101", "1000000000", "1" + "0" * 30, "9" * 5000, "-" + "9" * 30)
_NUMBERS += ("1e9", "1e30", "-1e30", "1e-320", "1e400", "nan", "inf", "-inf", "0.5", "1.5", "-0.5", "1,2", "5,5", ",")
_WORDS = (
    "",
    "x",
    "auto",
    "none",
    "cuda:99",
    "é" * 300,
    "a" * 5000,
    "=",
    "--x",
    "a\nb",
    "[bold]",
    "\x1b[31m",
    "{}",
    "%",
)

# What a path may lead to, made in the folder before the command runs.
PLACES = ("a-folder", "a-pipe", "a-loop", "a-link", "an-empty-file", "a-folder/x", "an-empty-file/x", "no-such/x/y")
PLACES += ("/dev/null", "/dev/full", "/dev/zero", "/proc/self/mem", "/proc/x", "/", ".", "", "~", "n" * 300)
PLACES += ("é" * 200, "/".join(["d" * 200] * 30), "base", "base/x", "base/config.json", "scores.h5", "x\ny", "\udcff")
PLACES += ("train.jsonl:0.5", "train.jsonl:nan", "a/b", "a/b/c", "mmlu", "file:///etc/passwd", "-")


def make_places(folder: Path) -> None:
    """Make what `PLACES` names in a folder."""
    (folder / "a-folder").mkdir()
    os.mkfifo(folder / "a-pipe")
    (folder / "a-loop").symlink_to("a-loop")
    (folder / "a-link").symlink_to("nowhere/at/all")
    (folder / "an-empty-file").touch()


@cache
def options() -> dict[str, tuple[str, ...]]:
    """The options of every command that take a value, as the command line itself knows them."""
    import typer

    from loki.cli.app import app
    from loki.cli.main import COMMANDS as MODULES

    for name in MODULES:
        importlib.import_module(f"loki.cli.{name}")
    commands: Any = typer.main.get_command(app)
    return {
        name: tuple(
            option.opts[0]
            for option in command.params
            if option.param_type_name == "option" and not option.is_flag and option.opts[0] not in _LEFT_OUT
        )
        for name, command in commands.commands.items()
    }


@st.composite
def option_words(draw: st.DrawFn) -> Command:
    """A command with a hostile value of one of its options."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    option = draw(st.sampled_from(options()[name] or ("--x",)))
    value = draw(st.sampled_from(_NUMBERS) | st.sampled_from(_WORDS) | st.sampled_from(PLACES))
    return (*COMMANDS[name], option, value)


@st.composite
def path_words(draw: st.DrawFn) -> Command:
    """A command with a hostile path in place of one of its own."""
    command = COMMANDS[draw(st.sampled_from(sorted(COMMANDS)))]
    own = [place for place, word in enumerate(command) if place and _is_path(word)]
    place = draw(st.sampled_from(own))
    return (*command[:place], draw(st.sampled_from(PLACES)), *command[place + 1 :])


def _is_path(word: object) -> bool:
    return str(word).startswith(("out", "base", "trained", "restored", "ranked", "adapter", "run")) or "." in str(word)
