"""Tables and a picture of the cells that `run.py` has run.

    python benchmarks/forgetting/tables.py CELLS [--picture pareto.png]

Every method at its best rate: of those at which every seed reached the wanted accuracy, the one with the least KL.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from cells import best_rate

from loki.files import atomic_file
from loki.report.result_figures import pareto_figure
from loki.report.table import ResultTable

PEERS = ("full fine-tuning", "LoRA, all linear", "LoRA, MLP", "OSF, MLP", "random rows")
"""What the target compares with."""

Cell = dict[str, Any]


def read_cells(folder: Path) -> list[Cell]:
    """All results of a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def at_best_rate(cells: Sequence[Cell], text: str) -> dict[tuple[str, str], list[Cell]]:
    """By model and method, the cells of its best rate, one per seed; a method that never learned enough is left out.

    Rates are compared on the first seed, which all of them have; more seeds are run at the best one only.
    """
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell["model"], cell["name"]].append(cell)
    best = {key: best_rate(group, text) for key, group in groups.items()}
    return {
        key: sorted((cell for cell in group if cell["rate"] == best[key]), key=lambda cell: int(cell["seed"]))
        for key, group in groups.items()
        if best[key] is not None
    }


def ratios(best: dict[tuple[str, str], list[Cell]], model: str, text: str) -> dict[str, float]:
    """KL of every method by that of the best of `PEERS` on one model; empty if none of them was run."""
    damage = {name: _mean(group, text) for (owner, name), group in best.items() if owner == model}
    peers = [damage[name] for name in PEERS if name in damage]
    return {name: kl / min(peers) for name, kl in damage.items()} if peers else {}


def best_table(cells: Sequence[Cell], model: str) -> ResultTable:
    """Every method of one model at its best rate, least damage first; the first text decides."""
    texts = list(cells[0]["texts"])
    best = at_best_rate(cells, texts[0])
    beside = ratios(best, model, texts[0])
    asked = list(dict.fromkeys(key for cell in cells for key in cell["answers"]))
    rows = []
    for name, group in sorted(
        ((name, group) for (owner, name), group in best.items() if owner == model),
        key=lambda item: _mean(item[1], texts[0]),
    ):
        rows.append(
            [
                name,
                f"{group[0]['rate']:g}",
                str(len(group)),
                f"{statistics.mean(cell['steps'] for cell in group):.0f}",
                _held_out(group),
                *(_spread([cell["texts"][text]["kl"] for cell in group]) for text in texts),
                f"{beside[name]:.2f}" if beside else "",
                *(_change(group, key) for key in asked),
            ]
        )
    answers = [f"{key.replace('_', ' ')}, change" for key in asked]
    header = ["method", "rate", "seeds", "steps", "held out", *(f"KL, {text}" for text in texts), "of best peer"]
    return ResultTable(f"{model}: every method at its best rate", [*header, *answers], rows)


def rates_table(cells: Sequence[Cell], model: str) -> ResultTable:
    """Every cell of one model."""
    texts = list(cells[0]["texts"])
    rows = [
        [
            cell["name"],
            f"{cell['rate']:g}",
            str(cell["seed"]),
            f"{cell['steps']}",
            f"{cell['accuracy']:.2f}" + ("" if cell["reached"] else " (not enough)"),
            _held_out([cell]),
            *(f"{cell['texts'][text]['kl']:.4f}" for text in texts),
            *(f"{cell['texts'][text]['loss_rise']:+.4f}" for text in texts),
        ]
        for cell in sorted(cells, key=lambda cell: (cell["name"], -cell["rate"], cell["seed"]))
        if cell["model"] == model
    ]
    measured = [*(f"KL, {text}" for text in texts), *(f"rise of loss, {text}" for text in texts)]
    return ResultTable(
        f"{model}: every cell", ["method", "rate", "seed", "steps", "right", "held out", *measured], rows
    )


def draw(cells: Sequence[Cell], model: str, path: Path) -> None:
    """Held-out questions answered against damage, every method of one model at its best rate and first seed, as PNG."""
    text = next(iter(cells[0]["texts"]))
    chosen = [group[0] for (owner, _), group in at_best_rate(cells, text).items() if owner == model]
    figure = pareto_figure(
        [
            {
                "new": cell["name"],
                "data": {"right": {"new": cell["held_out"] or cell["accuracy"]}},
                "texts": [{"kl": {"kl": cell["texts"][text]["kl"]}}],
            }
            for cell in chosen
        ]
    )
    figure.axes[0].set(xscale="log", ylabel="held-out questions answered", title=f"{model}, {text}")
    with atomic_file(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _mean(group: Sequence[Cell], text: str) -> float:
    return statistics.mean(cell["texts"][text]["kl"] for cell in group)


def _held_out(group: Sequence[Cell]) -> str:
    found = [cell["held_out"] for cell in group if cell["held_out"] is not None]
    return f"{statistics.mean(found):.2f}" if found else ""


def _spread(values: Sequence[float]) -> str:
    """Mean, and the range if there is more than one."""
    spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def _change(group: Sequence[Cell], key: str) -> str:
    changes = [cell["answers"][key] - cell["base_answers"][key] for cell in group if key in cell["answers"]]
    return f"{statistics.mean(changes):+.3f}" if changes else ""


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the cells.")],
    picture: Annotated[
        Path | None, typer.Option("--picture", help="PNG; the model's name is put before its own.")
    ] = None,
) -> None:
    """Print the tables of every model, and draw a picture of each."""
    cells = read_cells(folder)
    if not cells:
        raise SystemExit(f"{folder} holds no cell: run them with run.py")
    for model in sorted({cell["model"] for cell in cells}):
        own = [cell for cell in cells if cell["model"] == model]  # each is measured on texts of its own
        print(best_table(own, model).markdown())
        print(rates_table(own, model).markdown())
        if picture:
            draw(own, model, picture.with_name(f"{model}-{picture.name}"))


if __name__ == "__main__":
    typer.run(main)
