"""The cells of a grid, and what a plan says of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is the same in all cells; see `learning.learn`.

    Attributes:
        facts: how many to learn.
        calls: how many tool calls to learn, and to hold out.
        enough: part of right answers to stop at.
        max_steps: steps at most.
        autocast: whether to compute in bfloat16.
    """

    facts: int = 40
    calls: int = 48
    enough: float = 0.975
    max_steps: int = 60
    autocast: bool = True


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        model: name of the base.
        name: of the method, in tables.
        method: a key of `methods.METHODS`.
        rate: learning rate; None: the best of those that were tried on seed 0, see `at_the_best_rate`.
        seed: of facts, rows and adapters.
        task: `facts`, `calls` or `sequence`, see `tasks.task_maker`.
        quota: percentage of the rows.
        protect: share of protected input directions.
        soft: how sharply the more used directions are held back; None leaves them alone.
        moments: name of the file of second moments.
        positions: name of the file of selected rows.
        keep: weight of KL(base || model) on a text.
        replay: weight of the loss of a text.
        keep_text: name of the file of that text; or of the one that CorDA is calibrated on.
        dft: whether every token's loss is weighed by its probability (Dynamic Fine-Tuning, arXiv 2508.05629).
        scale: part of what was trained that stays in the end.
    """

    model: str
    name: str
    method: str
    rate: float | None
    seed: int
    task: str = "facts"
    quota: float = 30.0
    protect: float | None = None
    soft: float | None = None
    moments: str | None = None
    positions: str | None = None
    keep: float | None = None
    replay: float | None = None
    keep_text: str | None = None
    dft: bool = False
    scale: float = 1.0

    def path(self, folder: Path) -> Path:
        """The file of its result."""
        name = "".join(letter if letter.isalnum() or letter == "." else "-" for letter in self.name)
        task = "" if self.task == "facts" else f"_{self.task}"
        return folder / f"{self.model}{task}_{name}_{self.rate:g}_{self.seed}.json"

    def files(self, folder: Path) -> dict[str, Path]:
        """The files that it needs, by kind; a text is the same for all models."""
        needed = {"moments": self.moments, "positions": self.positions}
        found = {kind: folder / f"{self.model}-{name}" for kind, name in needed.items() if name}
        return found | ({"keep_text": folder / self.keep_text} if self.keep_text else {})


def cells_of(plan: dict[str, Any], models: list[str]) -> list[Cell]:
    """All cells of a plan for these models, in the order to run them; every cell once.

    A group has `models`, `methods`, `seeds`, perhaps `tasks`, and `rates`: numbers, or `best`.
    """
    found: dict[Cell, None] = {}
    for group in plan["cells"]:
        rates: list[float | None] = [None] if group["rates"] == "best" else list(map(float, group["rates"]))
        for model in group["models"]:
            for name in group["methods"]:
                if name not in plan["methods"]:
                    raise SystemExit(f"the plan has no method {name!r}")
                for task in group.get("tasks", ["facts"]):
                    for rate in rates:
                        for seed in group["seeds"]:
                            cell = Cell(model, name, rate=rate, seed=seed, task=task, **plan["methods"][name])
                            found[cell] = None
    return [cell for cell in found if cell.model in models]


def best_rate(cells: Sequence[Results], text: str) -> float | None:
    """The rate whose first seed did the least damage, KL on a text, of those at which all seeds learned enough."""
    rates = {cell["rate"] for cell in cells}
    reached = {rate for rate in rates if all(cell["reached"] for cell in cells if cell["rate"] == rate)}
    ordered = sorted(cells, key=lambda cell: int(cell["seed"]))
    first = {rate: next(cell for cell in ordered if cell["rate"] == rate) for rate in reached}
    return min(reached, key=lambda rate: float(first[rate]["texts"][text]["kl"]), default=None)


def at_the_best_rate(cell: Cell, planned: Sequence[Cell], folder: Path, text: str) -> float | None:
    """The best rate of a cell's method, of those that the plan tries with seed 0 on the same task.

    A sequence takes the best rate for its first task, facts. None: some are not run yet, or none learned enough.
    """
    task = "facts" if cell.task == "sequence" else cell.task
    tried = [
        other.path(folder)
        for other in planned
        if other.rate is not None
        and (other.model, other.name, other.task, other.seed) == (cell.model, cell.name, task, 0)
    ]
    if not all(path.exists() for path in tried):
        return None
    return best_rate([json.loads(path.read_text(encoding="utf-8")) for path in tried], text)
