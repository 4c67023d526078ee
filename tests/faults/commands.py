"""The commands that write, what they read, and what an undisturbed run of each leaves."""

import hashlib
import importlib
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loki.artefacts.positions import write_positions
from loki.cli.main import COMMANDS as cli_commands  # noqa: N811
from tests.artefacts.scores_files import write_scores
from tests.faults.children import Child
from tests.hostile.originals import import_everything
from tests.tiny_models import save_tiny_model

PLACE = "place"  # the folder that outputs are written in
OUTPUT = f"{PLACE}/output"
LEFTOVERS = (".tmp", ".old", ".gone", ".partial")
_LIBRARY = ("loki.restoring.restore", "loki.pipeline", "loki.demo.compare", "loki.demo.reporting", "loki.cli.progress")
_TRAIN = ("--learning-rate", "1e-2", "--warmup", "0", "--batch-size", "1")
_STEPS = (*_TRAIN, "--max-steps", "3", "--save-steps", "1")
_RUN = ("base", "--data", "train.jsonl", "--calibration", "questions.jsonl", "--quota", "25", *_STEPS)
_TEXT = ("--text", "text.txt")

COMMANDS: dict[str, tuple[str, ...]] = {
    "select": ("select", "scores.h5", "--quota", "10"),
    "create": ("create", "base", "--positions", "positions.json"),
    "adapter": ("adapter", "base", "--positions", "positions.json"),
    "suppress": ("suppress", "base", "--positions", "positions.json"),
    "restore": ("restore", "trained"),
    "restore-adapter": ("restore", "one", "--base", "base", "--allow-unchanged"),
    "merge": ("merge", "scores.h5", "other.h5"),
    "merge-adapters": ("merge-adapters", "one", "two"),
    "export-lora": ("export-lora", "one", "--full-rows"),
    "moments": ("moments", "base", "--data", "text.txt"),
    "analyse": ("analyse", "base", "--data", "questions.jsonl", "--batch-size", "2"),
    "evaluate": ("evaluate", "base", *_TEXT),
    "compare": ("compare", "base", "restored", *_TEXT),
    "ablate": ("ablate", "base", "--scores", "scores.h5", "--quotas", "25", *_TEXT),
    "report": ("report", "run", "--no-compare"),
    "scale": ("scale", "trained", "--data", "train.jsonl", "--keep", "text.txt", "--scales", "0.5,1"),
    "train": ("train", "loki", "--data", "train.jsonl", *_STEPS),
    "tune": ("tune", "loki", "--data", "train.jsonl"),
    "run": ("run", *_RUN),
    "demo": ("demo",),
}
ANEW = ("train", "tune", "run", "demo")  # with --overwrite they start anew, and so remove what stood there
CONTINUED = ("analyse", "moments", "train", "tune", "run")  # these keep what is done, and go on
DEAR = ("tune", "demo")  # take many seconds

_MADE = (
    ("create", "base", "--positions", "positions.json", "--output", "loki"),
    ("train", "loki", "--data", "train.jsonl", "--max-steps", "1", *_TRAIN, "--output", "trained"),
    ("restore", "trained", "--output", "restored"),
    ("adapter", "base", "--positions", "fours.json", "--output", "one"),
    ("adapter", "base", "--positions", "fives.json", "--output", "two"),
    ("run", *_RUN, "--output", "run"),
)


def words_of(name: str, output: Path | str = OUTPUT, *, overwrite: bool = False) -> tuple[str, ...]:
    """The command line of a command of `COMMANDS`."""
    option = "--plot" if name == "scale" else "--output"
    return (*COMMANDS[name], option, str(output), *(("--overwrite",) if overwrite else ()))


def make_inputs(folder: Path) -> None:
    """Fill `folder` with what the commands read; and import all that they import, for the processes that are forked."""
    import_everything()
    for module in (*(f"loki.cli.{command}" for command in cli_commands), *_LIBRARY):
        importlib.import_module(module)
    (folder / PLACE).mkdir(parents=True)
    save_tiny_model(folder / "base")
    for name, first in (("scores.h5", 0), ("other.h5", 10)):
        write_scores(folder / name, np.ones((2, 3, 32), dtype=np.float32), first=first)
    for name, row in (("positions", 1), ("fours", 4), ("fives", 5)):
        write_positions(folder / f"{name}.json", [[row], [row + 5], [row + 10]])
    (folder / "text.txt").write_text("once upon a time there was a baker who baked bread for the whole town\n" * 8)
    records = [{"prompt": f"who is {name}?", "completion": " a baker"} for name in ("Ann", "Bob", "Cid", "Dan")]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "questions.jsonl").write_text("".join(f'{{"prompt": "{"so " * n}who?"}}\n' for n in range(1, 9)))
    for words in _MADE:
        ended = Child(folder, words).wait()
        assert ended.code == 0, (words, ended.err)


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder` with the hash of its bytes; folders by their names."""
    return {
        str(path.relative_to(folder)): _digest(path) if path.is_file() else "" for path in sorted(folder.rglob("*"))
    }


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".safetensors" and len(content) >= 8:
        end = 8 + int.from_bytes(content[:8], "little")
        # The library writes the metadata in an order that differs from process to process.
        with suppress(ValueError):
            content = json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Expected:
    """What an undisturbed run leaves.

    Attributes:
        files: all files of the folder, with what `contents` says of each; "" where two runs differ (times, in records).
        seconds: how long it takes.
        size: bytes of its output.
        largest: bytes of its largest file.
    """

    files: dict[str, str]
    seconds: float
    size: int
    largest: int

    def differences(self, found: dict[str, str]) -> list[str]:
        """Names of what is not as it should be."""
        names = self.files.keys() ^ found.keys()
        return sorted(names | {name for name in self.files.keys() & found.keys() if self._other(name, found[name])})

    def _other(self, name: str, found: str) -> bool:
        return self.files[name] not in ("", found)


def undisturbed(inputs: Path, scratch: Path, name: str) -> Expected:
    """Run a command twice, each time from the inputs alone."""
    found = []
    for _ in range(2):
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(inputs, scratch)
        ended = Child(scratch, words_of(name)).wait()
        assert ended.code == 0, (name, ended.err)
        found.append(contents(scratch))
    first, second = found
    assert first.keys() == second.keys(), (name, first.keys() ^ second.keys())
    output = scratch / OUTPUT
    sizes = [path.stat().st_size for path in (output, *output.rglob("*")) if path.is_file()]
    # TRL counts the tokens that it says in this file anew where it resumes.
    alike = {key for key, value in first.items() if value == second[key] and not key.endswith("/trainer_state.json")}
    files = {key: value if key in alike else "" for key, value in first.items()}
    return Expected(files, ended.seconds, sum(sizes), max(sizes))


def not_as_given(inputs: Path, scratch: Path) -> list[str]:
    """Names of inputs that are missing or changed."""
    found = contents(scratch)
    return [name for name, value in contents(inputs).items() if found.get(name) != value]


def leftovers(folder: Path) -> list[str]:
    """Names of temporary files and folders."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in LEFTOVERS]
