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
from loki.report.table import ResultTable

PEERS = ("full fine-tuning", "LoRA, all linear", "LoRA, MLP", "OSF, MLP", "random rows")
"""What the target compares with."""

Cell = dict[str, Any]


def read_cells(folder: Path) -> list[Cell]:
    """All results of a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def texts_of(cells: Sequence[Cell]) -> list[str]:
    """The texts that any of them is measured on; all are on the first."""
    return list(dict.fromkeys(text for cell in cells for text in cell["texts"]))


def by_method(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells of every method, in order of their seeds."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in sorted(cells, key=lambda cell: int(cell["seed"])):
        groups[cell["name"]].append(cell)
    return groups


def at_best_rate(cells: Sequence[Cell], text: str) -> dict[str, list[Cell]]:
    """By method, the cells of its best rate, one per seed; a method that never learned enough is left out.

    Rates are compared on the first seed, which all of them have; more seeds are run at the best one only.
    """
    groups = by_method(cells)
    best = {name: best_rate(group, text) for name, group in groups.items()}
    return {
        name: [cell for cell in group if cell["rate"] == best[name]]
        for name, group in groups.items()
        if best[name] is not None
    }


def knowing_more(cells: Sequence[Cell], text: str, share: float) -> dict[str, list[Cell]]:
    """By method, the cell of least KL on a text that answers at least this share of the held-out questions.

    Of the first seed, which all rates have: among more draws the best would be a lucky one.
    """
    found = {}
    for name, group in by_method(cells).items():
        first = [cell for cell in group if cell["seed"] == group[0]["seed"]]
        knowing = [cell for cell in first if cell["reached"] and (cell["held_out"] or 0.0) >= share]
        if knowing:
            found[name] = [min(knowing, key=lambda cell: float(cell["texts"][text]["kl"]))]
    return found


def ratios(chosen: dict[str, list[Cell]], text: str) -> dict[str, float]:
    """KL of every method by that of the best of `PEERS`; empty if none of them was run."""
    damage = {name: _mean(group, text) for name, group in chosen.items()}
    peers = [damage[name] for name in PEERS if name in damage]
    return {name: kl / min(peers) for name, kl in damage.items()} if peers else {}


def method_table(title: str, cells: Sequence[Cell], chosen: dict[str, list[Cell]]) -> ResultTable:
    """One row a method, least damage first; the first text decides.

    Args:
        title: of the table.
        cells: of one model and task.
        chosen: those of them that stand for a method.
    """
    texts = texts_of(cells)
    beside = ratios(chosen, texts[0])
    asked = list(dict.fromkeys(key for cell in cells for key in cell["answers"]))
    rows = [
        [
            name,
            f"{group[0]['rate']:g}",
            str(len(group)),
            f"{statistics.mean(cell['steps'] for cell in group):.0f}",
            _held_out(group),
            *(_spread([cell["texts"][text]["kl"] for cell in group if text in cell["texts"]]) for text in texts),
            f"{beside[name]:.2f}" if beside else "",
            *(_change(group, key) for key in asked),
        ]
        for name, group in sorted(chosen.items(), key=lambda item: _mean(item[1], texts[0]))
    ]
    answers = [f"{key.replace('_', ' ')}, change" for key in asked]
    header = ["method", "rate", "seeds", "steps", "held out", *(f"KL, {text}" for text in texts), "of best peer"]
    return ResultTable(title, [*header, *answers], rows)


def rates_table(title: str, cells: Sequence[Cell]) -> ResultTable:
    """Every cell."""
    texts = texts_of(cells)
    rows = [
        [
            cell["name"],
            f"{cell['rate']:g}",
            str(cell["seed"]),
            f"{cell['steps']}",
            f"{cell['accuracy']:.2f}" + ("" if cell["reached"] else " (not enough)"),
            _held_out([cell]),
            *(f"{cell['texts'][text]['kl']:.4f}" if text in cell["texts"] else "" for text in texts),
            *(f"{cell['texts'][text]['loss_rise']:+.4f}" if text in cell["texts"] else "" for text in texts),
        ]
        for cell in sorted(cells, key=lambda cell: (cell["name"], -cell["rate"], cell["seed"]))
    ]
    measured = [*(f"KL, {text}" for text in texts), *(f"rise of loss, {text}" for text in texts)]
    return ResultTable(title, ["method", "rate", "seed", "steps", "right", "held out", *measured], rows)


def draw(title: str, cells: Sequence[Cell], path: Path) -> None:
    """Held-out questions answered against damage, a line per method over its rates (first seed), as PNG."""
    from matplotlib.figure import Figure

    text = next(iter(cells[0]["texts"]))
    chosen = at_best_rate(cells, text)
    figure = Figure(figsize=(9, max(5.0, 0.21 * len(chosen))), layout="constrained")  # as high as its legend
    axes = figure.add_subplot()
    for number, name in enumerate(sorted(chosen, key=lambda name: _mean(chosen[name], text))):
        first = [cell for cell in by_method(cells)[name] if cell["seed"] == 0 and cell["reached"]]
        points = sorted((cell["texts"][text]["kl"], cell["held_out"] or cell["accuracy"]) for cell in first)
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3], "marker": "."}
        axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set(xscale="log", xlabel=f"KL(base || tuned) on {text}, nats per token", ylabel="held-out questions answered")
    axes.set_title(title)
    figure.legend(loc="outside right upper", fontsize="small")
    with atomic_file(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _mean(group: Sequence[Cell], text: str) -> float:
    return statistics.mean(cell["texts"][text]["kl"] for cell in group)


def _held_out(group: Sequence[Cell]) -> str:
    found = [cell["held_out"] for cell in group if cell["held_out"] is not None]
    return f"{statistics.mean(found):.2f}" if found else ""


def _spread(values: Sequence[float]) -> str:
    """Mean, and the range if there is more than one; nothing if there is none."""
    if not values:
        return ""
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
    held_out: Annotated[
        float, typer.Option("--held-out", help="Compare as well where so many held-out questions are answered.")
    ] = 0.5,
) -> None:
    """Print the tables of every model and task, and draw a picture of each."""
    cells = read_cells(folder)
    if not cells:
        raise SystemExit(f"{folder} holds no cell: run them with run.py")
    for model, task in sorted({(cell["model"], cell["task"]) for cell in cells}):
        # Each is measured on texts of its own.
        own = [cell for cell in cells if (cell["model"], cell["task"]) == (model, task)]
        name, text = f"{model}, {task}", next(iter(own[0]["texts"]))
        print(method_table(f"{name}: every method at its best rate", own, at_best_rate(own, text)).markdown())
        knowing = knowing_more(own, text, held_out)
        if knowing:
            title = f"{name}: the least damage of every method with {held_out:.0%} of the held-out questions answered"
            print(method_table(title, own, knowing).markdown())
        print(rates_table(f"{name}: every cell", own).markdown())
        if picture:
            draw(name, own, picture.with_name(f"{model}-{'' if task == 'facts' else task + '-'}{picture.name}"))


if __name__ == "__main__":
    typer.run(main)
