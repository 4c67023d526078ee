"""What models forget while they learn invented facts: a grid of methods, rates and seeds, one JSON file per cell.

    export PYTHONPATH=benchmarks
    python benchmarks/forgetting/run.py CELLS --plan benchmarks/forgetting/plan.yaml --files FILES \
        --model smollm2=models/SmolLM2-135M-Instruct --text wikitext2=wikitext2_test.txt --text gsm8k=gsm8k_test.jsonl \
        --lambada lambada_test.jsonl --piqa piqa_valid.jsonl

A cell that is there already is not run again, so the run can be stopped at any time and started anew. A cell whose
files (positions, moments) are missing is passed over. FILES holds `MODEL-NAME` for every NAME in the plan: moments from
`loki moments`, positions from `loki select`.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from damage import OldKnowledge, Sources
from facts import Fact, invented_facts, read_facts
from hardware import hardware
from learning import learn
from methods import METHODS, Choice

from loki.files import write_json
from loki.metrics.accuracy import Question, answers_right
from loki.models.loading import load_model, load_tokenizer


@dataclass(frozen=True)
class Settings:
    """What is the same in all cells; see `learning.learn`.

    Attributes:
        facts: how many to learn.
        enough: part of right answers to stop at.
        max_steps: steps at most.
        autocast: whether to compute in bfloat16.
    """

    facts: int = 40
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
        rate: learning rate.
        seed: of facts, rows and adapters.
        quota: percentage of the rows.
        protect: share of protected input directions.
        moments: name of the file of second moments.
        positions: name of the file of selected rows.
    """

    model: str
    name: str
    method: str
    rate: float
    seed: int
    quota: float = 30.0
    protect: float | None = None
    moments: str | None = None
    positions: str | None = None

    def path(self, folder: Path) -> Path:
        """The file of its result."""
        name = "".join(letter if letter.isalnum() or letter == "." else "-" for letter in self.name)
        return folder / f"{self.model}_{name}_{self.rate:g}_{self.seed}.json"

    def files(self, folder: Path) -> dict[str, Path]:
        """The files that it needs, by kind."""
        needed = {"moments": self.moments, "positions": self.positions}
        return {kind: folder / f"{self.model}-{name}" for kind, name in needed.items() if name}


def cells_of(plan: dict[str, Any], models: list[str]) -> list[Cell]:
    """All cells of a plan for these models, in the order to run them; every cell once."""
    found: dict[Cell, None] = {}
    for group in plan["cells"]:
        for model in group["models"]:
            for name in group["methods"]:
                if name not in plan["methods"]:
                    raise SystemExit(f"the plan has no method {name!r}")
                for rate in group["rates"]:
                    for seed in group["seeds"]:
                        found[Cell(model, name, rate=float(rate), seed=seed, **plan["methods"][name])] = None
    return [cell for cell in found if cell.model in models]


def run_cell(
    cell: Cell, base_path: Path, facts: list[Fact], old: OldKnowledge, settings: Settings, files: Path
) -> dict[str, Any]:
    """Train one model and measure it."""
    torch.manual_seed(cell.seed)
    model = load_model(str(base_path), dtype="float32", device="cpu")
    model.requires_grad_(False)
    needed = cell.files(files)
    choice = Choice(cell.quota, cell.seed, needed.get("positions"), needed.get("moments"), cell.protect)
    trainable = METHODS[cell.method](model, choice)
    learned = learn(
        trainable,
        old.tokenizer,
        facts,
        rate=cell.rate,
        enough=settings.enough,
        max_steps=settings.max_steps,
        autocast=settings.autocast,
    )
    trainable.eval()
    paraphrases = [Question("facts", fact.paraphrase, fact.answer) for fact in facts if fact.paraphrase]
    started = time.perf_counter()
    damage = old.measure(model)
    return {
        **asdict(cell),
        **asdict(settings),
        "trained": sum(parameter.numel() for parameter in trainable.parameters() if parameter.requires_grad),
        **asdict(learned),
        "reached": learned.accuracy >= settings.enough,
        "facts": len(facts),
        "paraphrases": sum(answers_right(model, old.tokenizer, paraphrases)) / len(facts) if paraphrases else None,
        **damage,
        "seconds_measuring": time.perf_counter() - started,
        "threads": torch.get_num_threads(),
        "hardware": hardware(),
    }


def _named(options: list[str], kind: str) -> dict[str, Path]:
    pairs = [option.partition("=") for option in options]
    if bad := next((name for name, _, path in pairs if not path), None):
        raise SystemExit(f"{kind} {bad!r} is not NAME=PATH")
    return {name: Path(path) for name, _, path in pairs}


def main(
    output: Annotated[Path, typer.Argument(help="Folder of the cells.")],
    plan: Annotated[Path, typer.Option("--plan", help="What to run.")],
    files: Annotated[Path, typer.Option("--files", help="Folder of positions and moments.")],
    model: Annotated[list[str], typer.Option("--model", help="NAME=PATH, once or more.")],
    text: Annotated[list[str], typer.Option("--text", help="NAME=PATH, once or more.")],
    lambada: Annotated[Path | None, typer.Option("--lambada", help="LAMBADA as JSONL.")] = None,
    piqa: Annotated[Path | None, typer.Option("--piqa", help="PIQA as JSONL.")] = None,
    facts: Annotated[Path | None, typer.Option("--facts", help="JSONL of facts to learn. Default: invented.")] = None,
    questions: Annotated[Path | None, typer.Option("--questions", help="JSONL of old questions to answer.")] = None,
) -> None:
    """Run all cells of a plan that are missing."""
    loaded = yaml.safe_load(plan.read_text(encoding="utf-8"))
    settings, models = Settings(**loaded["settings"]), _named(model, "model")
    sources = Sources(_named(text, "text"), lambada, piqa, questions, **loaded["damage"])
    cells = [cell for cell in cells_of(loaded, list(models)) if not cell.path(output).exists()]
    old: dict[str, OldKnowledge] = {}
    started, done = time.monotonic(), 0
    for number, cell in enumerate(cells):
        if missing := next((str(path) for path in cell.files(files).values() if not path.exists()), None):
            print(f"{cell.name}, rate {cell.rate:g}: passed over, {missing} is missing", flush=True)
            continue
        if cell.model not in old:
            base = load_model(str(models[cell.model]), dtype="float32", device="cpu")
            old[cell.model] = OldKnowledge(base, load_tokenizer(str(models[cell.model])), sources)
        learned = read_facts(facts) if facts else invented_facts(settings.facts, cell.seed)
        result = run_cell(cell, models[cell.model], learned, old[cell.model], settings, files)
        write_json(cell.path(output), result)
        done += 1
        left = (time.monotonic() - started) / done * (len(cells) - number - 1) / 60
        kls = ", ".join(f"KL {found['kl']:.4f} on {name}" for name, found in result["texts"].items())
        print(
            f"[{number + 1}/{len(cells)}, {left:.0f} min left] {cell.model}, {cell.name}, rate {cell.rate:g}, seed "
            f"{cell.seed}: {result['steps']} steps, right {result['accuracy']:.2f}, "
            f"paraphrases {result['paraphrases'] or 0:.2f}, {kls}",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
