"""Trying one hostile input on a copy of the originals."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.kinds import Case
from tests.hostile.sandbox import Outcome, loki, run_in_child


@dataclass(frozen=True)
class Tried:
    """One input and what came of it.

    Attributes:
        case: the input.
        outcome: what the command did.
    """

    case: Case
    outcome: Outcome

    def __str__(self) -> str:
        words = " ".join(str(word)[:200] for word in self.case.command)
        return f"{self.case.what} | loki {words!r} | {self.outcome.problem}"


def try_case(originals: Path, scratch: Path, case: Case, *, outputs: tuple[str, ...] = ()) -> Tried:
    """Run the command of a case.

    Args:
        originals: the folder that `make_originals` filled.
        scratch: a folder for this try; removed before and after.
        case: the input.
        outputs: originals that the command may change where it succeeds.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(originals, scratch)
    try:
        case.prepare(scratch)
        return Tried(case, run_in_child(scratch, loki(*case.command), outputs=outputs))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
