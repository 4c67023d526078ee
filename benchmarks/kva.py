"""How fast KVA is: one forward pass, Captum as published, and the fast engine, all in the same run.

    python benchmarks/kva.py                                  every shape that this machine can hold, 1 and 2 threads
    python benchmarks/kva.py --shape llama-12x512 --threads 1
    python benchmarks/kva.py --quick                          a tiny shape, to see that everything works

Weights are random. Times are the best of `--repeats` runs, Captum's of `--captum-repeats`. Results are printed and,
with `--json`, saved.
"""

import ctypes
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from captum.attr import LayerIntegratedGradients
from hardware import hardware
from kva_analyse import outside_engine, processes_together
from kva_shapes import QUICK_SHAPES, SHAPES, Shape
from rich.console import Console
from transformers import PreTrainedModel

from loki.cli.quiet import quiet_libraries
from loki.files import write_json
from loki.kva import AttributionSettings, make_attributor
from loki.models.architectures import mlp_outputs
from loki.report.table import ResultTable

STEPS = 7
COUNTS = (1, 4, 16)  # prompts that go through the engine together, in the test of cost per sample


@dataclass(frozen=True)
class Result:
    """What was measured on one shape; times in seconds per prompt, memory in MiB beside the model.

    Attributes:
        paper_forwards: price of a prompt under `paper`, in forward passes of the prompt.
        gap_captum: relative error of the engine's scores against Captum as published, definition `captum`.
        gap_paper: the same under `paper`, against Captum's IntegratedGradients of the last position.
        linear_captum: seconds for `COUNTS` prompts together.
        linear_paper: likewise.
        rate_captum: prompts per second of the most of them together.
        rate_paper: likewise.
        outside_captum: part of a whole analysis's time in which no tensor operation runs: in the engine, in storing the
            batches, and in writing the scores file.
        outside_paper: likewise.
        matrix_rate: part of the device's matrix rate that the engine reaches (definition `captum`).
    """

    shape: str
    threads: int
    forward: float
    forward_last_logits: float
    captum: float
    engine_captum: float
    engine_paper: float
    speedup_captum: float
    speedup_paper: float
    paper_forwards: float
    gap_captum: float
    gap_paper: float
    linear_captum: list[float]
    linear_paper: list[float]
    rate_captum: float
    rate_paper: float
    memory_captum: float
    memory_paper: float
    outside_captum: float
    outside_paper: float
    matrix_rate: float


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


def measure(name: str, shape: Shape, threads: int, repeats: int, captum_repeats: int) -> Result:
    """All figures of one shape."""
    torch.set_num_threads(threads)
    model = shape.model()
    prompts = shape.prompts(max(COUNTS))
    input_ids = torch.tensor(prompts[:1], device=shape.device)

    def forward(**options: int) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=input_ids, use_cache=False, **options).logits
            return logits

    target = int(forward()[0, -1].argmax())
    times = {
        "forward": _best(forward, 3 * repeats, shape.device),
        "forward_last_logits": _best(lambda: forward(logits_to_keep=1), 3 * repeats, shape.device),
    }
    extra: dict[str, Any] = {}
    scores = {}
    for definition in ("captum", "paper"):
        settings = AttributionSettings(definition=definition, steps=STEPS)
        with make_attributor(model, settings) as attributor:

            def several(count=1, attributor=attributor):
                return attributor.attribute(prompts[:count], [target] * count)

            several()  # finds the layers and the activation baseline
            with _peak_memory(shape.device) as peak:
                scores[definition] = several()[0].scores
            times[f"engine_{definition}"] = _best(several, repeats, shape.device)
            linear = [_best(lambda count=count: several(count), 1, shape.device) for count in COUNTS[1:]]
            inside = 1 - _outside_operations(several, shape.device)
        extra[f"memory_{definition}"] = peak[0]
        extra[f"linear_{definition}"] = [times[f"engine_{definition}"], *linear]
        extra[f"rate_{definition}"] = max(COUNTS) / linear[-1]
        extra[f"outside_{definition}"] = 1 - inside * (1 - outside_engine(shape, model, definition, max(COUNTS)))
    reference: list[torch.Tensor] = []
    times["captum"] = _best(
        lambda: reference.append(captum_as_published(model, input_ids, target)), captum_repeats, shape.device
    )
    with make_attributor(model, AttributionSettings("paper", STEPS, engine="captum")) as captum:
        reference.append(captum.attribute(prompts[:1], [target])[0].scores)
    return Result(
        shape=name,
        threads=threads,
        speedup_captum=times["captum"] / times["engine_captum"],
        speedup_paper=times["captum"] / times["engine_paper"],
        paper_forwards=times["engine_paper"] / times["forward"],
        gap_captum=_gap(scores["captum"], reference[0]),
        gap_paper=_gap(scores["paper"], reference[-1]),
        matrix_rate=_engine_flops(model, shape.tokens) / times["engine_captum"] / _matrix_rate(shape),
        **times,
        **extra,
    )


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


def as_table(results: list[Result]) -> ResultTable:
    """The figures for people."""
    header = [
        *("shape", "threads", "forward", "Captum", "captum", "paper", "error", "(paper)"),
        *("samples/s", "(paper)", "MiB", "(paper)", "outside", "(paper)", "rate"),
        *(f"captum x{count}" for count in COUNTS),
        *(f"paper x{count}" for count in COUNTS),
    ]
    rows = [
        [
            r.shape,
            str(r.threads),
            *(f"{seconds:.3g} s" for seconds in (r.forward, r.captum, r.engine_captum, r.engine_paper)),
            *(f"{gap:.1e}" for gap in (r.gap_captum, r.gap_paper)),
            *(f"{rate:.3g}" for rate in (r.rate_captum, r.rate_paper)),
            *(f"{memory:.0f}" for memory in (r.memory_captum, r.memory_paper)),
            *(f"{part:.1%}" for part in (r.outside_captum, r.outside_paper, r.matrix_rate)),
            *(f"{seconds:.3g} s" for seconds in (*r.linear_captum, *r.linear_paper)),
        ]
        for r in results
    ]
    return ResultTable("KVA, per prompt", header, rows)


def targets(results: list[Result], shapes: dict[str, Shape], two_processes: float | None) -> ResultTable:
    """What was aimed at, and what came out."""
    rows = []

    def row(what: str, value: float, target: float, *, most: bool = False) -> None:
        met = value <= target if most else value >= target
        rows.append([what, f"{'<=' if most else '>='} {target:g}", f"{value:.3g}", "yes" if met else "no"])

    for r in results:
        aimed = shapes[r.shape]
        where = f"{r.shape}, {r.threads} threads: "
        row(where + "captum, times as fast as Captum", r.speedup_captum, aimed.speedup)
        row(where + "paper, times as fast as Captum", r.speedup_paper, 60)
        row(where + "paper, forward passes", r.paper_forwards, 2.3, most=True)
        for definition, gap in (("captum", r.gap_captum), ("paper", r.gap_paper)):
            row(f"{where}{definition}, relative error", gap, aimed.gap, most=True)
        if aimed.seconds:
            row(where + "captum, seconds", r.engine_captum, aimed.seconds[0], most=True)
            row(where + "paper, seconds", r.engine_paper, aimed.seconds[1], most=True)
        for definition, part in (("captum", r.outside_captum), ("paper", r.outside_paper)):
            row(f"{where}{definition}, part of the time outside the model", part, 0.05, most=True)
        for definition, seconds in (("captum", r.linear_captum), ("paper", r.linear_paper)):
            growth = seconds[-1] / seconds[0] / COUNTS[-1]
            row(
                f"{where}{definition}, time of {COUNTS[-1]} prompts over {COUNTS[-1]} times one", growth, 1.1, most=True
            )
    if two_processes is not None:
        row("samples/s of two processes over one", two_processes, 1.8)
    return ResultTable("Targets", ["what", "target", "measured", "met"], rows)


def main(
    shape: Annotated[list[str] | None, typer.Option(help="Shape to measure; may be repeated. Default: all.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="CPU threads; may be repeated. Default: 1 and 2.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of the engine; the best counts.")] = 3,
    captum_repeats: Annotated[int, typer.Option(help="Runs of Captum; the best counts.")] = 1,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to save the figures.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One tiny shape: to see that everything works.")] = False,
) -> None:
    """Measure KVA on random models."""
    quiet_libraries()
    console = Console(width=240)
    console.print(", ".join(f"{name}: {value}" for name, value in hardware().items()))
    shapes = QUICK_SHAPES if quick else SHAPES
    chosen = {name: shapes[name] for name in shape or shapes}
    results = []
    for name, wanted in chosen.items():
        if wanted.device == "cuda" and not torch.cuda.is_available():
            console.print(f"{name}: no CUDA device, left out")
            continue
        for count in [1] if wanted.device == "cuda" else threads or [1, 2]:
            results.append(measure(name, wanted, count, repeats, captum_repeats))
            console.print(json.dumps(asdict(results[-1])), soft_wrap=True)
    first = next(iter(shapes.values()))
    together = processes_together(first, *(4, 44) if quick else (8, 72)) if first in chosen.values() else None
    console.print(as_table(results).rich())
    console.print(targets(results, chosen, together).rich())
    if json_path is not None:
        figures = {"hardware": hardware(), "results": [asdict(r) for r in results], "two_processes": together}
        write_json(json_path, figures, overwrite=True)


if __name__ == "__main__":
    typer.run(main)
