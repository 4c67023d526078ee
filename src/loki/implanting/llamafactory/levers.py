"""Levers in LlamaFactory's own process: a term of the loss that keeps what was known, and a budget of damage."""

import json
from io import StringIO
from typing import Any

from rich.console import Console

from loki.files import write_json
from loki.implanting.llamafactory.run_directory import RunDirectory
from loki.implanting.training.keep import AddsKeepTerm
from loki.implanting.training.lever_plan import LeverPlan


def add_levers(run: RunDirectory) -> None:
    """Put a trainer with the levers that a run directory describes, if any, in the place of LlamaFactory's.

    Every process of the run calls this; when training has ended, the main one writes what was said of the damage, and
    whether anything was trained at all, into the run directory.
    """
    from llamafactory.train.sft import workflow

    if not run.levers.is_file():
        return
    plan = LeverPlan(**json.loads(run.levers.read_text(encoding="utf-8")))

    class LeversTrainer(AddsKeepTerm, workflow.CustomSeq2SeqTrainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._said = StringIO()
            self._levers = plan.prepare(self.model, Console(file=self._said))
            self.keep_term = self._levers.term
            for callback in self._levers.callbacks:
                self.add_callback(callback)

        def train(self, *args: Any, **options: Any) -> Any:
            result = super().train(*args, **options)
            if self.is_world_process_zero():
                outcome = {"said": self._said.getvalue(), "nothing_trained": self._levers.nothing_trained}
                write_json(run.outcome, outcome, overwrite=True)
            return result

    workflow.CustomSeq2SeqTrainer = LeversTrainer
