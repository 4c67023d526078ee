"""What a training step with LoKI costs, beside LoRA and full fine-tuning, all in the same run.

    python benchmarks/training_step.py                        Qwen2.5-0.5B's shape: float32 on the CPU and, where there
                                                              is one, bfloat16 on the GPU
    python benchmarks/training_step.py --device cuda          on the GPU alone
    python benchmarks/training_step.py --layers 8 --rounds 3  a quick look

Weights are random. What is compared takes turns, so that noise hits all alike: seconds are medians over the rounds, and
a ratio is the median of the rounds' ratios. Results are printed and, with `--json`, saved.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from hardware import hardware
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from rich.console import Console
from rich.progress import track
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from loki.artefacts.positions import Positions
from loki.files import write_json
from loki.implanting.linear import LoKILinear
from loki.implanting.peft import LoKIConfig
from loki.implanting.splitting import active_parameters, split_rows
from loki.models.experts import down_projections
from loki.report.table import ResultTable

HIDDEN, D_FF = 896, 4864
BATCH, TOKENS = 4, 128
RANK = 16
MIB = 2**20

# What the ratios may be at most.
LORA_TARGET = 0.88
FULL_TARGET = 0.56
FORWARD_TARGET = 1.02
BACKWARD_TARGET = 1.20
SAVED_TARGET = 1.05
RESTORED_TARGET = 1.02  # the same modules: what exceeds 1 is noise


@dataclass(frozen=True)
class Step:
    """One way of training.

    Attributes:
        seconds: of forward, backward, optimiser and zeroing of the gradients.
        to_lora, to_full: these seconds relative to LoRA's and to full fine-tuning's.
        trained: number of trained parameters.
        saved_bytes: what a forward pass keeps for backward beside the model's own parameters and buffers.
        training_bytes: gradients and Adam's two moments.
    """

    name: str
    seconds: float
    to_lora: float
    to_full: float
    trained: int
    saved_bytes: int
    training_bytes: int


@dataclass(frozen=True)
class Ratio:
    """A measured ratio and the most it may be, or what it must be exactly."""

    name: str
    value: float
    target: float
    exact: bool = False

    @property
    def reached(self) -> bool:
        """Whether the target is reached."""
        return self.value == self.target if self.exact else self.value <= self.target


@dataclass(frozen=True)
class Place:
    """Where everything runs, and in which type the weights are."""

    device: str
    dtype: torch.dtype


def random_positions(layers: int, quota: int) -> Positions:
    """`quota` percent of every layer's rows, drawn at random."""
    count = round(HIDDEN * quota / 100)
    generator = torch.Generator().manual_seed(0)
    return [sorted(torch.randperm(HIDDEN, generator=generator)[:count].tolist()) for _ in range(layers)]


def base_model(layers: int, place: Place) -> PreTrainedModel:
    """Qwen2.5-0.5B with random weights, a smaller vocabulary, and `layers` layers."""
    config = Qwen2Config(
        num_hidden_layers=layers,
        hidden_size=HIDDEN,
        intermediate_size=D_FF,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=32000,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(place.device):
        return AutoModelForCausalLM.from_config(config, dtype=place.dtype).train()


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the same weights: seven models of their own would not fit into a small machine's memory."""
    return copy.deepcopy(model, {id(weight): nn.Parameter(weight.data) for weight in model.parameters()})


def loki_model(model: PreTrainedModel, quota: int) -> PreTrainedModel:
    """As `loki train` trains it: the rows in float32."""
    split_rows(model, random_positions(model.config.num_hidden_layers, quota))
    for rows in active_parameters(model).values():
        rows.data = rows.data.float()
    return model


def loki_adapter(model: PreTrainedModel, rank: int | None) -> nn.Module:
    """LoKI as a PEFT method, quota 10."""
    positions = random_positions(model.config.num_hidden_layers, 10)
    adapted: nn.Module = get_peft_model(model, LoKIConfig(positions=positions, rank=rank))
    return adapted


def lora(model: PreTrainedModel) -> nn.Module:
    """Stock LoRA on all linear layers of the decoder."""
    adapted: nn.Module = get_peft_model(
        model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0)
    )
    return adapted


def trainable_tokens(model: PreTrainedModel) -> nn.Module:
    """Stock TrainableTokens on `down_proj`, quota 10: it takes the same rows in every layer."""
    rows = random_positions(1, 10)[0]
    adapted: nn.Module = get_peft_model(
        model, TrainableTokensConfig(token_indices=rows, target_modules=["down_proj"], task_type="CAUSAL_LM")
    )
    return adapted


WAYS: dict[str, Callable[[PreTrainedModel], nn.Module]] = {
    "LoKI q=10": lambda model: loki_model(model, 10),
    "LoKI q=30": lambda model: loki_model(model, 30),
    "LoKI adapter q=10": lambda model: loki_adapter(model, None),
    f"LoKI adapter q=10, r={RANK}": lambda model: loki_adapter(model, RANK),
    "TrainableTokens q=10": trainable_tokens,
    "LoRA r=16": lora,
    "full": copy.deepcopy,
}


class Trainer:
    """A model with its optimiser: AdamW, fused, as Transformers' and TRL's trainers use it by default."""

    def __init__(self, model: nn.Module, device: str) -> None:
        self.model = model
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)
        self.prompts = torch.randint(0, 32000, (BATCH, TOKENS), device=device)

    def loss(self) -> torch.Tensor:
        """Of one forward pass."""
        loss: torch.Tensor = self.model(input_ids=self.prompts, labels=self.prompts, use_cache=False).loss
        return loss

    def step(self) -> None:
        """One training step."""
        self.loss().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()

    def saved_bytes(self) -> int:
        """What a forward pass keeps for backward beside parameters and buffers."""
        return saved_bytes(self.loss, [*self.model.parameters(), *self.model.buffers()])

    def training_bytes(self) -> int:
        """Gradients and Adam's moments, after a step."""
        self.loss().backward()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        moments = [state[name] for state in self.optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")]
        self.optimiser.zero_grad()
        return sum(tensor.untyped_storage().nbytes() for tensor in [*gradients, *moments])


def saved_bytes(forward: Callable[[], object], known: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages that `forward` saves for backward, each counted once and those of `known` not at all."""
    saved: dict[int, torch.Tensor] = {}  # the tensors themselves, lest an address is used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    for tensor in known:
        saved.pop(tensor.untyped_storage().data_ptr(), None)
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del result
    return total


def take_turns(works: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every work in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in track(range(rounds + 1), description=", ".join(works)[:60]):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: list[float], others: list[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(seconds, others, strict=True))


def measure_steps(base: PreTrainedModel, rounds: int, device: str) -> list[Step]:
    """Training steps of all ways."""
    trainers = {name: Trainer(way(sharing_weights(base)), device) for name, way in WAYS.items()}
    seconds = take_turns({name: trainer.step for name, trainer in trainers.items()}, rounds, device)
    return [
        Step(
            name=name,
            seconds=statistics.median(seconds[name]),
            to_lora=ratio(seconds[name], seconds["LoRA r=16"]),
            to_full=ratio(seconds[name], seconds["full"]),
            trained=sum(parameter.numel() for parameter in trainer.trained),
            saved_bytes=trainer.saved_bytes(),
            training_bytes=trainer.training_bytes(),
        )
        for name, trainer in trainers.items()
    ]


def measure_layer(rounds: int, place: Place) -> list[Ratio]:
    """One LoKILinear of `down_proj`'s size beside a frozen nn.Linear, with as many tokens as a batch has."""
    torch.manual_seed(0)
    frozen = nn.Linear(D_FF, HIDDEN, bias=False, device=place.device, dtype=place.dtype).requires_grad_(False)
    layers: dict[str, nn.Module] = {"frozen": frozen}
    for quota in (10, 30):
        layers[f"q={quota}"] = LoKILinear(copy.deepcopy(frozen), random_positions(1, quota)[0])
    x = torch.randn(BATCH * TOKENS, D_FF, device=place.device, dtype=place.dtype, requires_grad=True)
    upstream = torch.randn(BATCH * TOKENS, HIDDEN, device=place.device, dtype=place.dtype)

    def forward_backward(layer: nn.Module) -> None:
        layer(x).backward(upstream)
        x.grad = None
        layer.zero_grad()

    def works(work: Callable[[nn.Module], object]) -> dict[str, Callable[[], object]]:
        return {name: lambda layer=layer: work(layer) for name, layer in layers.items()}

    forward = take_turns(works(lambda layer: layer(x)), rounds, place.device)
    both = take_turns(works(forward_backward), rounds, place.device)
    saved = {name: saved_bytes(lambda layer=layer: layer(x), layer.parameters()) for name, layer in layers.items()}
    needed = saved["frozen"] + x.untyped_storage().nbytes()  # the gradient of the active rows takes the input
    quotas = ("q=10", "q=30")
    return [
        *(Ratio(f"forward, {q}", ratio(forward[q], forward["frozen"]), FORWARD_TARGET) for q in quotas),
        *(Ratio(f"forward + backward, {q}", ratio(both[q], both["frozen"]), BACKWARD_TARGET) for q in quotas),
        *(Ratio(f"saved for backward / needed, {q}", saved[q] / needed, SAVED_TARGET) for q in quotas),
    ]


def measure_restored(base: PreTrainedModel, rounds: int, device: str) -> Ratio:
    """Forward pass of a restored model beside the base model's."""
    restored = copy.deepcopy(base)
    restored.load_state_dict(loki_model(sharing_weights(base), 10).state_dict())
    assert {type(module) for module in down_projections(restored).values()} == {nn.Linear}
    prompts = torch.randint(0, 32000, (BATCH, TOKENS), device=device)

    @torch.no_grad()
    def forward(model: PreTrainedModel) -> None:
        model(input_ids=prompts, use_cache=False)

    seconds = take_turns({"restored": lambda: forward(restored), "base": lambda: forward(base)}, rounds, device)
    return Ratio("forward of a restored model / base", ratio(seconds["restored"], seconds["base"]), RESTORED_TARGET)


def step_ratios(steps: list[Step], layers: int) -> list[Ratio]:
    """LoKI's step beside those of LoRA and full fine-tuning, and its memory beside the active rows' count."""
    loki = {step.name: step for step in steps}["LoKI q=10"]
    active = sum(map(len, random_positions(layers, 10))) * D_FF
    return [
        Ratio("step, LoKI q=10 / LoRA r=16", loki.to_lora, LORA_TARGET),
        Ratio("step, LoKI q=10 / full", loki.to_full, FULL_TARGET),
        Ratio(
            "gradients and moments / 3 float32 per active parameter",
            loki.training_bytes / (12 * active),
            1.0,
            exact=True,
        ),
    ]


def measure(layers: int, rounds: int, place: Place) -> tuple[list[Step], list[Ratio]]:
    """All figures of one device."""
    base = base_model(layers, place)
    alone = [*measure_layer(10 * rounds, place), measure_restored(base, rounds, place.device)]
    steps = measure_steps(base, rounds, place.device)
    return steps, [*step_ratios(steps, layers), *alone]


def step_table(steps: list[Step], title: str) -> ResultTable:
    """The ways of training for people."""
    header = ["", "s/step", "of LoRA", "of full", "trained", "saved MiB", "gradients, moments MiB"]
    rows = [
        [
            step.name,
            f"{step.seconds:.3g}",
            f"{step.to_lora:.3f}",
            f"{step.to_full:.3f}",
            f"{step.trained:,}",
            f"{step.saved_bytes / MIB:.0f}",
            f"{step.training_bytes / MIB:.1f}",
        ]
        for step in steps
    ]
    return ResultTable(title, header, rows)


def ratio_table(ratios: list[Ratio]) -> ResultTable:
    """The ratios beside their targets for people."""
    rows = [
        [r.name, f"{r.value:.4f}", f"{'exactly' if r.exact else 'at most'} {r.target:g}", "yes" if r.reached else "no"]
        for r in ratios
    ]
    return ResultTable("Targets", ["", "ratio", "target", "reached"], rows)


def main(
    layers: Annotated[int, typer.Option(help="Decoder layers.")] = 24,
    rounds: Annotated[int, typer.Option(help="Training steps of each way; ten times as many passes of a layer.")] = 9,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    device: Annotated[
        list[str] | None,
        typer.Option(help="cpu (float32) or cuda (bfloat16); may be repeated. Default: all there are."),
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to save the figures.")] = None,
) -> None:
    """Measure training steps on random models."""
    torch.set_num_threads(threads)
    console = Console(width=120)
    cuda = torch.cuda.is_available()
    chosen = device or ["cpu", *(["cuda"] if cuda else [])]
    if "cuda" in chosen and not cuda:
        console.print("no CUDA device: measure on the CPU (--device cpu)")
        raise typer.Exit(2)
    console.print(", ".join(f"{name}: {value}" for name, value in hardware().items()))
    results = []
    for name in chosen:
        place = Place(name, torch.bfloat16 if name == "cuda" else torch.float32)
        steps, ratios = measure(layers, rounds, place)
        dtype = str(place.dtype).removeprefix("torch.")
        title = f"Training step on {name}, {layers} x {HIDDEN}, {BATCH} x {TOKENS} tokens, {dtype}, {threads} threads"
        console.print(step_table(steps, title).rich())
        console.print(ratio_table(ratios).rich())
        results.append(
            {
                "device": name,
                "dtype": dtype,
                "threads": threads,
                "layers": layers,
                "steps": [asdict(step) for step in steps],
                "ratios": [{**asdict(r), "reached": r.reached} for r in ratios],
            }
        )
    if json_path is not None:
        write_json(json_path, {"hardware": hardware(), "results": results}, overwrite=True)


if __name__ == "__main__":
    typer.run(main)
