"""What models forget while they learn a new task: a grid of methods, rates, tasks and seeds, one JSON file per cell.

    export PYTHONPATH=benchmarks
    python benchmarks/forgetting/run.py CELLS --plan benchmarks/forgetting/plan.yaml --files FILES \
        --model smollm2=models/SmolLM2-135M-Instruct --text wikitext2=wikitext2_test.txt --text gsm8k=gsm8k_test.jsonl \
        --lambada lambada_test.jsonl --piqa piqa_valid.jsonl

A cell that is there already is not run again, so the run can be stopped at any time and started anew, and started more
than once: processes share the cells among them. A cell whose files (positions, moments) are missing is passed over, and
so is one that fails (out of memory, say), which is named at the end.
FILES holds `MODEL-NAME` for every NAME in the plan: moments from `loki moments`, positions from `loki select`.
"""

import copy
import gc
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from cells import Cell, Settings, at_the_best_rate, cells_of
from damage import OldKnowledge, Sources, windows_of
from filelock import FileLock, Timeout
from hardware import hardware
from learning import Keep, learn
from methods import METHODS, Choice, ordinary
from tasks import Task, task_maker
from transformers import PreTrainedModel

from loki.errors import one_line
from loki.files import write_json
from loki.metrics.accuracy import answers_right
from loki.models.loading import load_model, load_tokenizer

KEPT = {"count": 64, "window": 64}  # windows of the text that is kept, or that CorDA is calibrated on


def run_cell(cell: Cell, tasks: list[Task], old: OldKnowledge, settings: Settings, files: Path) -> dict[str, Any]:
    """Train a copy of the base, on one task or several in turn, and measure it."""
    model: PreTrainedModel = copy.deepcopy(old.base)
    needed = cell.files(files)
    calibration, terms = None, []
    if "keep_text" in needed:
        texts = windows_of(needed["keep_text"], old.tokenizer, **KEPT)
        ids = [old.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        shortest = min(map(len, ids))
        calibration = torch.tensor([some[:shortest] for some in ids])
        if cell.keep is not None:
            terms.append(Keep(old.base, calibration, cell.keep))
        if cell.replay is not None:
            terms.append(Keep(None, calibration, cell.replay))
    learned = []
    for number, task in enumerate(tasks):
        model = ordinary(model)
        seed = cell.seed + 100 * number
        torch.manual_seed(seed)
        model.requires_grad_(False)
        choice = Choice(
            cell.quota, seed, needed.get("positions"), needed.get("moments"), cell.protect, cell.soft, calibration
        )
        model = METHODS[cell.method](model, choice)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        before = [parameter.detach().clone() for parameter in trained] if cell.scale != 1 else []
        learned.append(
            learn(
                model,
                old.tokenizer,
                task.trained,
                rate=cell.rate,  # type: ignore[arg-type]
                enough=settings.enough,
                max_steps=settings.max_steps,
                autocast=settings.autocast,
                terms=terms,
                dft=cell.dft,
            )
        )
        if before:
            with torch.no_grad():
                for parameter, start in zip(trained, before, strict=True):
                    parameter.copy_(torch.lerp(start, parameter, cell.scale))
    model.eval()
    started = time.perf_counter()
    known = [
        {
            "task": task.name,
            "steps": one.steps,
            "accuracy_when_learned": one.accuracy,
            "accuracy": _right(model, old, task.trained),
            "held_out": _right(model, old, task.held_out) if task.held_out else None,
        }
        for task, one in zip(tasks, learned, strict=True)
    ]
    return {
        **asdict(cell),
        **asdict(settings),
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        **asdict(learned[-1]),
        "reached": all(one.accuracy >= settings.enough for one in learned),
        "examples": len(tasks[-1].trained),
        "held_out": known[-1]["held_out"],
        "known": known,
        **old.measure(model),
        "seconds_measuring": time.perf_counter() - started,
        "threads": torch.get_num_threads(),
        "hardware": hardware(),
    }


def _right(model: torch.nn.Module, old: OldKnowledge, questions: list[Any]) -> float:
    marks = answers_right(model, old.tokenizer, questions)  # type: ignore[arg-type]
    return sum(marks) / len(marks)


def _named(options: list[str], kind: str) -> dict[str, Path]:
    pairs = [option.partition("=") for option in options]
    if bad := next((name for name, _, path in pairs if not path), None):
        raise SystemExit(f"{kind} {bad!r} is not NAME=PATH")
    return {name: Path(path) for name, _, path in pairs}


@dataclass
class Grid:
    """Everything that the cells of a run share.

    Attributes:
        output: folder of the cells.
        files: folder of positions and moments.
        device: where models are trained and measured.
        models: base models by name.
        settings: what is the same in all cells.
        sources: where damage is measured.
        make_tasks: see `tasks.task_maker`.
    """

    output: Path
    files: Path
    device: str
    models: dict[str, Path]
    settings: Settings
    sources: Sources
    make_tasks: Any

    def __post_init__(self) -> None:
        self._old: dict[str, OldKnowledge] = {}

    def run(self, cell: Cell) -> dict[str, Any] | None:
        """Run a cell unless it is there, or another process is at it; None where it was not run."""
        self.output.mkdir(parents=True, exist_ok=True)
        path = cell.path(self.output)
        lock = FileLock(self.output / f".{path.stem}.lock")
        gc.collect()  # of the cell before, whether it ended well or not
        if self.device == "cuda":
            torch.cuda.empty_cache()  # processes share the card
        try:
            with lock.acquire(blocking=False):
                if path.exists():
                    return None
                result = run_cell(
                    cell, self.make_tasks(cell.task, cell.seed), self._of(cell.model), self.settings, self.files
                )
                write_json(path, result)
        except Timeout:
            return None
        return result

    def _of(self, name: str) -> OldKnowledge:
        if name not in self._old:
            base = load_model(str(self.models[name]), dtype="float32", device=self.device)
            self._old[name] = OldKnowledge(base, load_tokenizer(str(self.models[name])), self.sources)
        return self._old[name]


def main(
    output: Annotated[Path, typer.Argument(help="Folder of the cells.")],
    plan: Annotated[Path, typer.Option("--plan", help="What to run.")],
    files: Annotated[Path, typer.Option("--files", help="Folder of positions and moments.")],
    model: Annotated[list[str], typer.Option("--model", help="NAME=PATH, once or more.")],
    text: Annotated[list[str], typer.Option("--text", help="NAME=PATH, once or more.")],
    lambada: Annotated[Path | None, typer.Option("--lambada", help="LAMBADA as JSONL.")] = None,
    piqa: Annotated[Path | None, typer.Option("--piqa", help="PIQA as JSONL.")] = None,
    mmlu: Annotated[Path | None, typer.Option("--mmlu", help="Questions with choices and answer as JSONL.")] = None,
    chat: Annotated[Path | None, typer.Option("--chat", help="Dialogues with messages as JSONL.")] = None,
    facts: Annotated[Path | None, typer.Option("--facts", help="JSONL of facts to learn. Default: invented.")] = None,
    questions: Annotated[Path | None, typer.Option("--questions", help="JSONL of old questions to answer.")] = None,
    calls: Annotated[Path | None, typer.Option("--calls", help="Tool calls to learn, as BFCL has them.")] = None,
    call_answers: Annotated[Path | None, typer.Option("--call-answers", help="The answers to them.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
) -> None:
    """Run all cells of a plan that are missing."""
    loaded = yaml.safe_load(plan.read_text(encoding="utf-8"))
    settings = Settings(**loaded["settings"])
    make_tasks = task_maker(
        facts=facts,
        fact_count=settings.facts,
        calls=(calls, call_answers) if calls and call_answers else None,
        call_count=settings.calls,
    )
    sources = Sources(_named(text, "text"), lambada, piqa, chat, questions, mmlu, **loaded["damage"])
    grid = Grid(output, files, device, _named(model, "model"), settings, sources, make_tasks)
    planned = cells_of(loaded, list(grid.models))
    started, done = time.monotonic(), 0
    failed: list[str] = []
    for number, cell in enumerate(planned):
        if cell.rate is None:
            rate = at_the_best_rate(cell, planned, output, next(iter(sources.texts)))
            if rate is None:
                print(f"{cell.name}: passed over, no rate has reached the accuracy yet", flush=True)
                continue
            cell = replace(cell, rate=rate)
        if missing := next((str(path) for path in cell.files(files).values() if not path.exists()), None):
            print(f"{cell.name}, rate {cell.rate:g}: passed over, {missing} is missing", flush=True)
            continue
        try:
            if cell.path(output).exists() or (result := grid.run(cell)) is None:
                continue
        except (RuntimeError, ValueError) as error:  # out of memory, or a model that a peer cannot adapt
            failed.append(f"{cell.path(output).stem}: {one_line(error)}")
            print(f"failed: {failed[-1]}", flush=True)
            continue
        done += 1
        left = (time.monotonic() - started) / done * (len(planned) - number - 1) / 60
        kls = ", ".join(f"KL {found['kl']:.4f} on {name}" for name, found in result["texts"].items())
        print(
            f"[{number + 1}/{len(planned)}, {left:.0f} min left at most] {cell.model}, {cell.task}, {cell.name}, rate "
            f"{cell.rate:g}, seed {cell.seed}: {result['steps']} steps, right {result['accuracy']:.2f}, "
            f"held out {result['held_out'] or 0:.2f}, {kls}",
            flush=True,
        )
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    typer.run(main)
