"""Tables of the cells that `grid.py` has run.

python benchmarks/forgetting/tables.py CELLS
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def table(cells: list[dict[str, Any]]) -> str:
    """A Markdown table: one line per model, method and rate, means over the seeds, least damage first."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        groups[cell["model"], cell["method"], cell["rate"]].append(cell)
    lines = [
        "| model | method | rate | seeds | steps | answers right | paraphrases right | KL | rise of loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (model, method, rate), group in sorted(groups.items(), key=lambda item: (item[0][0], _mean(item[1], "kl"))):
        means = {key: _mean(group, key) for key in ("steps", "accuracy", "paraphrases", "kl", "loss_rise")}
        lines.append(
            f"| {model} | {method} | {rate:g} | {len(group)} | {means['steps']:.0f} | {means['accuracy']:.3f} | "
            f"{means['paraphrases']:.2f} | {means['kl']:.4f} | {means['loss_rise']:+.4f} |"
        )
    return "\n".join(lines)


def _mean(group: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(cell[key] for cell in group)


if __name__ == "__main__":
    print(table([json.loads(path.read_text()) for path in sorted(Path(sys.argv[1]).glob("*.json"))]))
