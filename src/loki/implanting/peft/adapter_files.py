"""Reading and writing adapter directories without loading the base model."""

import re
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file

from loki.artefacts.model_card import ADAPTER, write_model_card
from loki.errors import LokiError
from loki.files import atomic_directory
from loki.implanting.directions import digest
from loki.implanting.experts import by_expert
from loki.implanting.peft.adapter_schema import AdapterConfiguration
from loki.implanting.peft.config import LoKIConfig
from loki.implanting.peft.layer import InputDirections
from loki.inputs import checked, read_json, reading, safetensors_header, shown
from loki.inputs.tensors import FLOATS
from loki.models.experts import Experts

KEY_PREFIX = "base_model.model."
_ADVICE = "save or fetch the adapter again"
_KEY = re.compile(r"(?P<module>.+)\.(?P<kind>loki_delta|loki_A|loki_B|loki_C|loki_U)\.weight")


@dataclass(frozen=True)
class LayerDelta:
    """What an adapter adds to one projection, or to those of all experts of a layer.

    Attributes:
        module: qualified name of the projection in the base model, `model.layers.3.mlp.down_proj`, or of the experts.
        rows: the `k` row indices.
        tensors: `loki_delta` `[k, d_ff]`; or `loki_B` `[k, r]` and `loki_A` `[r, d_ff]`; or `loki_C` `[k, blocks * r]`
            and `loki_U` `[blocks, n, r]`, see `loki.implanting.directions`. For E experts the first three are
            `[E * k, d_ff]`, `[E * k, r]` and `[E * r, d_ff]`: those of the first expert, then those of the next.
    """

    module: str
    rows: list[int]
    tensors: dict[str, torch.Tensor]

    @property
    def experts(self) -> int:
        """Number of experts E; 1 for a projection."""
        first = next(tensor for kind, tensor in self.tensors.items() if kind in ("loki_delta", "loki_B", "loki_C"))
        return len(first) // len(self.rows)

    @property
    def width(self) -> int:
        """Number of columns `d_ff`."""
        if "loki_U" in self.tensors:
            return self.tensors["loki_U"].shape[0] * self.tensors["loki_U"].shape[1]
        return self.tensors["loki_delta" if "loki_delta" in self.tensors else "loki_A"].shape[1]

    @property
    def matrix(self) -> torch.Tensor:
        """The delta of the rows, `[E * k, d_ff]`; multiplied out in at least float32 where there is a rank."""
        if "loki_delta" in self.tensors:
            return self.tensors["loki_delta"]
        if "loki_U" in self.tensors:
            return InputDirections(self.tensors["loki_U"]).expand(self.tensors["loki_C"])
        up, down = self.tensors["loki_B"], self.tensors["loki_A"]
        dtype = torch.promote_types(up.dtype, torch.float32)
        return (by_expert(up.to(dtype), self.experts) @ by_expert(down.to(dtype), self.experts)).flatten(0, 1)


@dataclass(frozen=True)
class SavedAdapter:
    """A LoKI adapter read from its directory.

    Attributes:
        path: the directory.
        config: its configuration.
        layers: what it adds in each layer of the base model: nothing where no row is selected, and with `--experts all`
            also to the experts.
    """

    path: Path
    config: LoKIConfig
    layers: list[list[LayerDelta]]

    @property
    def adapted(self) -> list[LayerDelta]:
        """What it adds in all layers."""
        return [delta for layer in self.layers for delta in layer]


def read_adapter(path: Path) -> SavedAdapter:
    """Read a LoKI adapter directory.

    Raises:
        LokiError: if it is not a LoKI adapter, a file is missing or damaged, or weights and positions do not agree.
    """
    file = path / CONFIG_NAME
    raw = read_json(file, what="adapter configuration")
    kind = raw.get("peft_type") if isinstance(raw, dict) else None
    if kind != "LOKI":
        found = shown(kind).strip("'") if kind else "damaged"
        raise LokiError(f"{path} holds a {found} adapter, not a LoKI adapter: name one saved with LoKIConfig")
    checked(AdapterConfiguration, raw, f"adapter configuration {file}", advice=_ADVICE)
    with reading("adapter configuration", file, advice=_ADVICE):
        config: LoKIConfig = LoKIConfig.from_pretrained(str(path))
    weights = path / SAFETENSORS_WEIGHTS_NAME
    header = safetensors_header(weights, what="adapter weights", advice=_ADVICE)
    other = next((name for name, entry in header.items() if entry.dtype not in FLOATS), None)
    if other is not None:
        raise LokiError(
            f"adapter weights {weights}: {other[:200]} is {header[other].dtype}, no floating-point type: {_ADVICE}"
        )
    with reading("adapter weights", weights, advice=_ADVICE):
        tensors = load_file(weights)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise LokiError(f"{weights}: {name} is NaN or infinite: train the adapter again, at a lower rate")
    return SavedAdapter(path, config, _layers(path, config, tensors))


def write_adapter(
    output: Path, config: PeftConfig, rows: LoKIConfig, tensors: dict[str, torch.Tensor], *, overwrite: bool = False
) -> None:
    """Write an adapter directory in PEFT's layout with a model card, atomically.

    Args:
        output: the directory to make.
        config: configuration of any PEFT method.
        rows: configuration with the rows that it changes.
        tensors: weights by their names in the file, `base_model.model.MODULE.KIND.weight`.
        overwrite: replace a directory that exists.

    Raises:
        LokiError: if `output` exists and `overwrite` is False.
    """
    with atomic_directory(output, overwrite=overwrite) as directory:
        saved = copy(config)
        saved.inference_mode = True
        saved.save_pretrained(str(directory))
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        write_model_card(
            directory,
            ADAPTER,
            name=output.name,
            base=str(config.base_model_name_or_path or "unknown model"),
            positions=rows.row_lists,
            hidden=rows.rows_per_layer or rows.found_rows,
        )


def _layers(path: Path, config: LoKIConfig, tensors: dict[str, torch.Tensor]) -> list[list[LayerDelta]]:
    by_module: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise LokiError(f"adapter {path} holds {key}, which is not a LoKI weight: save or fetch it again")
        by_module.setdefault(match["module"].removeprefix(KEY_PREFIX), {})[match["kind"]] = tensor
    by_layer: dict[tuple[int, ...], list[str]] = {}
    for module in sorted(by_module):
        # Layer numbers are the only numbers that differ between the names; beside experts, they are the first ones.
        numbers = tuple(int(number) for number in re.findall(r"\d+", module))
        by_layer.setdefault(numbers[:1] if config.experts == Experts.ALL else (*numbers,), []).append(module)
    modules = [by_layer[numbers] for numbers in sorted(by_layer)]
    selected = [index for index, rows in enumerate(config.row_lists) if rows]
    if len(modules) != len(selected):
        raise LokiError(f"adapter {path} has weights for {len(modules)} layers but positions for {len(selected)}")
    layers: list[list[LayerDelta]] = [[] for _ in config.row_lists]
    for index, names in zip(selected, modules, strict=True):
        layers[index] = [_delta(path, config, index, name, by_module[name]) for name in names]
    return layers


def _delta(path: Path, config: LoKIConfig, index: int, module: str, found: dict[str, torch.Tensor]) -> LayerDelta:
    rows = config.row_lists[index]
    kinds = {"loki_delta"} if config.rank is None else {"loki_A", "loki_B"}
    if config.protect is not None:
        kinds = {"loki_C", "loki_U"}
    if set(found) != kinds or not _shapes_fit(found, len(rows), config):
        raise LokiError(
            f"adapter {path}: the weights of {module} do not fit its {len(rows)} positions"
            + (f" and rank {config.rank}" if config.rank else "")
            + ": save or fetch the adapter again"
        )
    known = config.directions_digests if config.protect is not None else None
    if known and digest({0: found["loki_U"]}) != (known[index] if index < len(known) else None):
        raise LokiError(
            f"adapter {path} holds other input directions for {module} than it was made with: save it again"
        )
    return LayerDelta(module, rows, found)


def _shapes_fit(tensors: dict[str, torch.Tensor], rows: int, config: LoKIConfig) -> bool:
    if config.protect is not None:
        blocks, size, count = config.directions_shape or (0, 0, 0)
        return tensors["loki_C"].shape == (rows, blocks * count) and tensors["loki_U"].shape == (blocks, size, count)
    if any(tensor.ndim != 2 for tensor in tensors.values()):
        return False
    first = tensors["loki_delta" if config.rank is None else "loki_B"]
    experts = max(1, len(first) // rows) if config.experts == Experts.ALL else 1
    if len(first) != experts * rows:
        return False
    return config.rank is None or (first.shape[1] == config.rank and len(tensors["loki_A"]) == experts * config.rank)
