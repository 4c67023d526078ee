"""Typing the blocks of a page in a folder, in order, as a reader would."""

import fnmatch
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from tests.cli.running import Outcome, Shell
from tests.docs.pages import LAUNCHED, ROOT, Block
from tests.docs.placeholders import COMMANDS, FILES, MADE_FROM
from tests.programs import run_together

_WRITES = re.compile(r"--(?:output|plot) (\S+)|save_dir=\"([^\"]+)\"")
_NAMES = re.compile(r"[\w./-]+")
_IN_BASH = ("cat", "printf")
# Fresh processes know the hub's cache only where they are told.
_LOKI = (
    "import sys, huggingface_hub.constants as hub; hub.HF_HUB_CACHE = sys.argv.pop(1); "
    "from loki.cli import main; main()"
)


class Typist:
    """Types blocks in the working folder, in which whatever they name is made before it is needed.

    A block can be pasted as it is: its commands run one after the other. Blocks that write what an earlier block of
    the page has written are alternatives to it, so its outputs are removed before.

    Args:
        shell: what runs `loki`.
        cache: a hub cache.
    """

    def __init__(self, shell: Shell, cache: Path) -> None:
        self._shell = shell
        self._cache = cache

    def type_in(self, block: Block) -> None:
        lines = _commands(block)
        for found in _WRITES.finditer("\n".join(line for line in lines if "--overwrite" not in line)):
            _remove(Path(found[1] or found[2]))
        if block.language == "python":
            # What it writes itself is not there before.
            read = re.sub(r"save_dir=\"[^\"]+\"", "", block.text)
            self._provide(" ".join(re.findall(r'"([^"]+)"', read)))
            exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})
        elif block.title is not None:
            Path(block.title).write_text(block.text)
        elif block.language == "console":
            for said in block.text.removeprefix("$ ").split("\n$ "):
                command, _, expected = said.partition("\n")
                self._provide(command)
                _compare(self._loki(command), expected)
        else:
            for line in lines:
                self._run(line)

    def _run(self, line: str) -> None:
        program, *rest = shlex.split(line, comments=True)
        if program not in _IN_BASH:
            self._provide(line)
        if program == "loki":
            self._loki(line)
        elif launched := LAUNCHED.match(line):
            shutil.copytree(ROOT / "distributed_config", "distributed_config", dirs_exist_ok=True)
            words = shlex.split(LAUNCHED.sub("", line))[1:]
            run_together(_processes(launched[1]), "-c", _LOKI, self._cache, *words, cwd=Path.cwd())
        elif program == "make":
            subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, check=True, capture_output=True)
        elif program in _IN_BASH:
            subprocess.run(["bash", "-c", line], check=True)
        else:
            raise AssertionError(f"{program} is another program: say so above the block")

    def _loki(self, line: str) -> Outcome:
        words = shlex.split(line, comments=True)[1:]
        outcome = self._shell(*words)
        # What a comparison says of small models is not what is tested.
        allowed = (0, 1, 3) if words[0] == "compare" else (0,)
        assert outcome.code in allowed, f"{line} exited with {outcome.code}: {outcome.err or outcome.out}"
        return outcome

    def _provide(self, text: str) -> None:
        """Make what a text names and the folder lacks."""
        written = {found[1] or found[2] for found in _WRITES.finditer(text)}
        for name in dict.fromkeys(_NAMES.findall(text)):
            if name not in written:
                self._make(name)

    def _make(self, name: str) -> None:
        path = Path(name)
        root = next((parent for parent in [*path.parents][::-1] if str(parent) in COMMANDS), None)
        if path.exists() or path.name.startswith("-"):
            return
        if root is not None:  # such as runs/mine/run.yaml
            self._make(str(root))
        elif name in FILES:
            for needed in MADE_FROM.get(name, []):
                self._make(needed)
            path.parent.mkdir(parents=True, exist_ok=True)
            FILES[name](path)
        elif name in COMMANDS:
            self._provide(COMMANDS[name])
            self._loki(COMMANDS[name])


def _commands(block: Block) -> list[str]:
    """The commands of a block: what a backslash or a here-document joins is one."""
    lines = re.finditer(r"^.*<<'(\w+)'\n(?:.*\n)*?\1$|^.+$", block.text.replace("\\\n", " "), flags=re.MULTILINE)
    return [line[0] for line in lines if not line[0].startswith("#")]


def _processes(options: str) -> int:
    """How many to start: two stand for any number."""
    if given := re.search(r"--num_processes (\d+)", options):
        return min(2, int(given[1]))
    config = re.search(r"--config_file (\S+)", options)
    assert config is not None
    found = re.search(r"^num_processes: (\d+)$", Path(config[1]).read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1])


def _compare(outcome: Outcome, expected: str) -> None:
    """Every line that a page shows was said; `...` stands for anything, and seconds and last digits may differ."""
    said = f"{outcome.out}\n{outcome.err}".splitlines()
    for line in filter(None, expected.splitlines()):
        pattern = re.sub(r"\b\d+ s\b", "* s", line.replace("[", "[[]").replace("...", "*"))
        assert fnmatch.filter(said, re.sub(r"(\d\.\d)\d+", r"\1*", pattern)), f"{line!r} is not among {said}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
