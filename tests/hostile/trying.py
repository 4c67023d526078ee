"""Trying one edit with one command, on a copy of the originals."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.edits import Edit
from tests.hostile.kinds import Command
from tests.hostile.sandbox import Outcome, loki, run_in_child


@dataclass(frozen=True)
class Tried:
    """One input and what came of it.

    Attributes:
        edit: what was done to the file.
        command: what read it.
        outcome: what the command did.
    """

    edit: str
    command: Command
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.edit} | loki {' '.join(map(str, self.command))} | {self.outcome.problem}"


def try_edit(originals: Path, scratch: Path, edited: str, edit: Edit, command: Command) -> Tried:
    """Run `command` where `edited` is changed by `edit`.

    Args:
        originals: the folder that `make_originals` filled.
        scratch: a folder for this try; removed before and after.
        edited: relative path of the file.
        edit: what to do to it.
        command: words of the command line.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(originals, scratch)
    try:
        edit.apply(scratch / edited)
        return Tried(edit.what, command, run_in_child(scratch, loki(*command)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
