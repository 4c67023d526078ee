"""How fast KVA is: one forward pass, Captum as published, and the fast engine, all in the same run.

    python benchmarks/kva.py                                  every shape that this machine can hold, 1 and 2 threads
    python benchmarks/kva.py --shape llama-12x512 --threads 1
    python benchmarks/kva.py --quick                          a tiny shape, to see that everything works

Weights are random. Times are the best of `--repeats` runs, those of minutes are measured once. Results are printed and,
with `--json`, saved. All takes about half an hour on two cores, two thirds of it Captum and `captum` on 24 layers.
"""

import ctypes
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from captum.attr import LayerIntegratedGradients
from hardware import hardware
from kva_analyse import analyse_whole, processes_together
from kva_report import Result, tables, target_table, targets
from kva_shapes import COUNTS, QUICK_SHAPES, SHAPES, Shape
from rich.console import Console
from transformers import PreTrainedModel

from loki.cli.quiet import quiet_libraries
from loki.files import write_json
from loki.kva import AttributionSettings, make_attributor
from loki.models.architectures import mlp_outputs

STEPS = 7
PARITY_TOKENS = 16


def captum_as_published(model: PreTrainedModel, input_ids: torch.Tensor, target: int) -> torch.Tensor:
    """The published loop: Captum's LayerIntegratedGradients, one layer after the other. Scores `[L, D]`."""

    def probability(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids).logits[:, -1].softmax(-1)[:, target]

    rows = []
    for output in mlp_outputs(model):
        attributions = LayerIntegratedGradients(probability, output.attributed_module).attribute(
            input_ids, baselines=torch.zeros_like(input_ids), n_steps=STEPS, method="riemann_trapezoid"
        )
        rows.append(attributions[0, -1].float().cpu())
    return torch.stack(rows)


def measure(name: str, shape: Shape, threads: int, model: PreTrainedModel, gap_paper: float, repeats: int) -> Result:
    """All figures of one shape at one number of threads."""
    prompts = shape.prompts(max(COUNTS))
    input_ids = torch.tensor(prompts[:1], device=shape.device)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits
            return logits

    target = int(forward()[0, -1].argmax())
    times = {"forward": _best(forward, 3 * repeats, shape.device)}
    extra: dict[str, Any] = {}
    found: dict[str, torch.Tensor] = {}
    for definition, analysed in zip(("captum", "paper"), shape.analysed, strict=True):
        counts = shape.counts(definition)
        with make_attributor(model, AttributionSettings(definition, STEPS, engine="fast")) as attributor:

            def several(count=1, attributor=attributor):
                return attributor.attribute(prompts[:count], [target] * count)

            attributor.attribute([prompts[0][:PARITY_TOKENS]], [target])  # examines the model
            with _peak_memory(shape.device) as peak:
                first = _best(lambda: found.update({definition: several()[0].scores}), 1, shape.device)  # noqa: B023
            again = _best(several, repeats - 1, shape.device) if len(counts) > 1 and repeats > 1 else first
            linear = {1: min(first, again)}
            linear |= {n: _best(lambda n=n: several(n), 1, shape.device) / n for n in counts[1:]}
        times[f"engine_{definition}"] = linear[1]
        extra[f"memory_{definition}"] = peak[0]
        extra[f"linear_{definition}"] = linear
        extra[f"rate_{definition}"] = 1 / linear[max(counts)]
        whole = partial(analyse_whole, shape, model, definition, analysed)
        extra[f"outside_{definition}"] = _outside_operations(whole, shape.device)
    reference: list[torch.Tensor] = []
    times["captum"] = _best(lambda: reference.append(captum_as_published(model, input_ids, target)), 1, shape.device)
    return Result(
        shape=name,
        threads=threads,
        speedup_captum=times["captum"] / times["engine_captum"],
        speedup_paper=times["captum"] / times["engine_paper"],
        paper_forwards=times["engine_paper"] / times["forward"],
        gap_captum=_gap(found["captum"], reference[0]),
        gap_paper=gap_paper,
        matrix_rate=_engine_flops(model, shape.tokens) / times["engine_captum"] / _matrix_rate(shape),
        **times,
        **extra,
    )


def paper_gap(shape: Shape, model: PreTrainedModel) -> float:
    """Relative error of `paper` against Captum's IntegratedGradients of the last position, which is as slow as Captum.

    So on a short prompt, and once per shape: numbers of threads change nothing.
    """
    prompt = shape.prompts(1)[0][:PARITY_TOKENS]
    found = []
    for engine in ("fast", "captum"):
        with make_attributor(model, AttributionSettings("paper", STEPS, engine=engine)) as attributor:
            found.append(attributor.attribute([prompt], [None])[0].scores)
    return _gap(*found)


def _gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _best(work: Callable[[], object], repeats: int, device: str) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def _peak_memory(device: str) -> Iterator[list[float]]:
    """The most memory (MiB) that the block takes beyond what was taken before it; on a CPU, resident memory."""
    peak = [0.0]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        peak[0] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that was freed before hides what is taken now
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], (process.memory_info().rss - before) / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _outside_operations(work: Callable[[], object], device: str) -> float:
    """The part of the time of `work` in which no tensor operation runs (on a GPU: in which it idles)."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    events = profile.key_averages()
    busy = sum(event.self_device_time_total if device == "cuda" else event.self_cpu_time_total for event in events)
    return max(0.0, 1 - busy / 1e6 / wall)


def _engine_flops(model: PreTrainedModel, tokens: int) -> float:
    """Multiply-adds (times two) that the definition `captum` cannot do without, without attention products and head."""
    layer = sum(parameter.numel() for parameter in mlp_outputs(model)[0].layer.parameters())
    layers = model.config.num_hidden_layers
    passes = (STEPS - 1) * (layers - 1) * (layers - 2) / 2 + layers
    return 2.0 * layer * tokens * passes


def _matrix_rate(shape: Shape) -> float:
    """Floating-point operations per second of a large matrix product on the device, in the shape's dtype."""
    size = 8192 if shape.device == "cuda" else 1536
    a, b = torch.randn(2, size, size, device=shape.device, dtype=shape.dtype)
    return 2.0 * size**3 / _best(lambda: a @ b, 10, shape.device)


def main(
    shape: Annotated[list[str] | None, typer.Option(help="Shape to measure; may be repeated. Default: all.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="CPU threads; may be repeated. Default: 1 and 2.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of the engine; the best counts.")] = 3,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to save the figures.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One tiny shape: to see that everything works.")] = False,
) -> None:
    """Measure KVA on random models."""
    quiet_libraries()
    console = Console(width=160)
    console.print(", ".join(f"{name}: {value}" for name, value in hardware().items()))
    shapes = QUICK_SHAPES if quick else SHAPES
    chosen = {name: shapes[name] for name in shape or shapes}
    results = []
    for name, wanted in chosen.items():
        if wanted.device == "cuda" and not torch.cuda.is_available():
            console.print(f"{name}: no CUDA device, left out")
            continue
        model = wanted.model()
        gap = paper_gap(wanted, model)
        for count in [1] if wanted.device == "cuda" else threads or [1, 2]:
            torch.set_num_threads(count)
            results.append(measure(name, wanted, count, model, gap, repeats))
            console.print(json.dumps(asdict(results[-1])), soft_wrap=True, highlight=False)
        del model
    first = next(iter(shapes))
    together = None
    if first in chosen:
        together = processes_together(shapes[first], *(50, 1550) if quick else (4, 20))
    reached = targets(results, chosen, together)
    for table in (*tables(results), target_table(reached)):
        console.print(table.rich())
    if json_path is not None:
        figures = {
            "hardware": hardware(),
            "results": [asdict(result) for result in results],
            "two_processes": together,
            "targets": [{**asdict(target), "reached": target.reached} for target in reached],
        }
        write_json(json_path, figures, overwrite=True)


if __name__ == "__main__":
    typer.run(main)
