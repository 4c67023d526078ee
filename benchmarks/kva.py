"""How fast KVA is: one forward pass, Captum as published, and the fast engine, all in the same run.

    python benchmarks/kva.py                                  every shape that this machine can hold, 1 and 2 threads
    python benchmarks/kva.py --shape llama-12x512 --threads 1

Weights are random. Times are the best of `--repeats` runs, Captum's of `--captum-repeats`. Results are printed and,
with `--json`, saved.
"""

import ctypes
import json
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer
from captum.attr import LayerIntegratedGradients
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

from loki.files import write_json
from loki.kva import AttributionSettings, make_attributor
from loki.models.architectures import mlp_outputs
from loki.report.table import ResultTable

STEPS = 7
MANY = 4  # prompts in the test of cost per sample


@dataclass(frozen=True)
class Shape:
    """A model shape, the length of its prompt, and where it runs."""

    config: PretrainedConfig
    tokens: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


SHAPES = {
    "llama-12x512": Shape(
        LlamaConfig(
            num_hidden_layers=12, hidden_size=512, intermediate_size=1408, num_attention_heads=8, vocab_size=8000
        ),
        tokens=128,
    ),
    "qwen2.5-0.5b": Shape(
        Qwen2Config(
            num_hidden_layers=24,
            hidden_size=896,
            intermediate_size=4864,
            num_attention_heads=14,
            num_key_value_heads=2,
            vocab_size=32000,
            tie_word_embeddings=True,
        ),
        tokens=150,
    ),
    "llama-3.1-8b": Shape(
        LlamaConfig(
            num_hidden_layers=32,
            hidden_size=4096,
            intermediate_size=14336,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
        ),
        tokens=150,
        device="cuda",
        dtype=torch.bfloat16,
    ),
}


@dataclass(frozen=True)
class Result:
    """What was measured on one shape; times in seconds per prompt, memory in MiB beside the model.

    Attributes:
        gap_captum: relative error of the engine's scores against Captum's, definition `captum`.
        paper_forwards: price of a prompt under `paper`, in forward passes of the prompt.
        batch_captum: seconds per prompt when `MANY` go through the engine together.
        outside: part of the engine's time (definition `captum`) that is not spent in tensor operations.
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
    batch_captum: float
    batch_paper: float
    memory_captum: float
    memory_paper: float
    outside: float
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


def measure(name: str, threads: int, repeats: int, captum_repeats: int) -> Result:
    """All figures of one shape."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = SHAPES[name]
    with torch.device(shape.device):
        model = AutoModelForCausalLM.from_config(shape.config, dtype=shape.dtype).eval()
    prompts = torch.randint(1, shape.config.vocab_size, (MANY, shape.tokens)).tolist()
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
    extra: dict[str, float] = {}
    scores = {}
    for definition in ("captum", "paper"):
        settings = AttributionSettings(definition=definition, steps=STEPS)
        with make_attributor(model, settings) as attributor:

            def one(attributor=attributor):
                return attributor.attribute(prompts[:1], [target])

            one()  # finds the layers and the baseline
            with _peak_memory(shape.device) as peak:
                scores[definition] = one()[0].scores
            extra[f"memory_{definition}"] = peak[0]
            times[f"engine_{definition}"] = _best(one, repeats, shape.device)
            many = _best(lambda: attributor.attribute(prompts, [target] * MANY), 1, shape.device)
            extra[f"batch_{definition}"] = many / MANY
            if definition == "captum":
                extra["outside"] = _outside_operations(one, shape.device)
    reference: list[torch.Tensor] = []
    times["captum"] = _best(
        lambda: reference.append(captum_as_published(model, input_ids, target)), captum_repeats, shape.device
    )
    gap = float((scores["captum"] - reference[0]).norm() / reference[0].norm())
    return Result(
        shape=name,
        threads=threads,
        speedup_captum=times["captum"] / times["engine_captum"],
        speedup_paper=times["captum"] / times["engine_paper"],
        paper_forwards=times["engine_paper"] / times["forward"],
        gap_captum=gap,
        matrix_rate=_engine_flops(model, shape.tokens) / times["engine_captum"] / _matrix_rate(shape),
        **times,
        **extra,
    )


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
        *("shape", "threads", "forward", "Captum", "captum", "times", "paper", "times", "forwards", "error"),
        *(f"captum x{MANY}", f"paper x{MANY}", "MiB", "MiB (paper)", "outside", "rate"),
    ]
    rows = [
        [
            r.shape,
            str(r.threads),
            *(f"{seconds:.3g} s" for seconds in (r.forward, r.captum, r.engine_captum)),
            f"{r.speedup_captum:.2f}",
            f"{r.engine_paper:.3g} s",
            f"{r.speedup_paper:.0f}",
            f"{r.paper_forwards:.2f}",
            f"{r.gap_captum:.1e}",
            *(f"{seconds:.3g} s" for seconds in (r.batch_captum, r.batch_paper)),
            *(f"{memory:.0f}" for memory in (r.memory_captum, r.memory_paper)),
            *(f"{part:.1%}" for part in (r.outside, r.matrix_rate)),
        ]
        for r in results
    ]
    return ResultTable("KVA, per prompt", header, rows)


def main(
    shape: Annotated[list[str] | None, typer.Option(help="Shape to measure; may be repeated. Default: all.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="CPU threads; may be repeated. Default: 1 and 2.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of the engine; the best counts.")] = 3,
    captum_repeats: Annotated[int, typer.Option(help="Runs of Captum; the best counts.")] = 1,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to save the figures.")] = None,
) -> None:
    """Measure KVA on random models."""
    console = Console(width=200)
    results = []
    for name in shape or SHAPES:
        if SHAPES[name].device == "cuda" and not torch.cuda.is_available():
            console.print(f"{name}: no CUDA device, left out")
            continue
        for count in [1] if SHAPES[name].device == "cuda" else threads or [1, 2]:
            results.append(measure(name, count, repeats, captum_repeats))
            console.print(json.dumps(asdict(results[-1])), soft_wrap=True)
    console.print(as_table(results).rich())
    if json_path is not None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        hardware = {"processor": platform.processor() or platform.machine(), "gpu": device, "torch": torch.__version__}
        write_json(json_path, {"hardware": hardware, "results": [asdict(r) for r in results]}, overwrite=True)


if __name__ == "__main__":
    typer.run(main)
