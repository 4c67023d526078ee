"""What an adapter depends on in its base beside its rows: the other weights of the layers that they stand in."""

import re
from collections.abc import Collection, Iterable

import torch
import xxhash

from loki.implanting.peft.base_weight import same_base
from loki.models.checkpoint import PLAIN_DTYPES
from loki.models.classes import skeleton
from loki.models.model_directory import ModelDirectory
from loki.models.tensor_names import module_names

_ROWS, _COLUMNS = 4096, 64  # of every weight, at least so many rows, evenly spread, and their first values
_IN_LAYER = re.compile(r"(?P<layer>.+?\.\d+)\.(?P<part>[^.]+)\.")


def base_parts(weights: Iterable[tuple[str, torch.Tensor]], with_rows: Collection[str]) -> dict[str, str]:
    """What tells one base from another by the parts of its layers (`self_attn`, `mlp`, `input_layernorm`, ...).

    The weights that rows are selected in are left out, with their biases: other rows may have been trained before. So
    are embeddings, which grow with the vocabulary. Large weights are looked at in part, as in `base_fingerprint`.

    Args:
        weights: qualified name and value of the base's parameters; those of adapters are passed over.
        with_rows: qualified names of the weights that rows are selected in.

    Returns:
        By part, over all layers, `DTYPE:HEX` as in `base_fingerprint`; without parts whose weights are no plain
        numbers (quantised, sharded, not loaded).
    """
    layers = {found["layer"] for name in with_rows if (found := _IN_LAYER.match(f"{name}."))}
    left_out = {name.removesuffix(".weight") for name in with_rows}  # projections, and weights of all experts
    sums: dict[str, int] = {}
    half: set[str] = set()
    unreadable: set[str] = set()
    for wrapped, weight in weights:
        name = wrapped.replace(".base_layer.", ".")
        found = _IN_LAYER.match(name)
        if found is None or found["layer"] not in layers or re.search(r"\.(loki|lora)_", name):
            continue
        part = found["part"]
        if name.rpartition(".")[0] in left_out or name.removesuffix("_bias") in left_out:
            continue
        value = weight.data if isinstance(weight, torch.nn.Parameter) else weight
        if type(value) is not torch.Tensor or value.is_meta or value.dtype not in PLAIN_DTYPES:
            unreadable.add(part)
            continue
        if value.dtype == torch.float16:
            half.add(part)
        rows = value.detach().reshape(-1, value.shape[-1] if value.ndim > 1 else 1)
        seen = rows[:: max(1, len(rows) // _ROWS), :_COLUMNS].to("cpu", torch.bfloat16).contiguous()
        digest = xxhash.xxh3_64_intdigest(
            f"{name}|{tuple(value.shape)}|".encode() + seen.view(torch.uint8).numpy().tobytes()
        )
        sums[part] = (sums.get(part, 0) + digest) % 2**64
    return {
        part: f"{'float16' if part in half else 'bfloat16'}:{total:016x}"
        for part, total in sorted(sums.items())
        if part not in unreadable
    }


def parts_of_directory(base: ModelDirectory, with_rows: Collection[str]) -> dict[str, str]:
    """The same of a model directory, one weight in memory at a time.

    Parts that are stored otherwise than the model holds them (fused while loading) are left out.

    Args:
        base: the base model.
        with_rows: qualified names, in the model, of the weights that rows are selected in.
    """
    model, checkpoint = skeleton(base.config, trust_remote_code=base.trust_remote_code), base.checkpoint
    stored = {name: place for place, name in module_names(model, checkpoint.names()).items()}
    wanted = {name for name, _ in model.named_parameters()}
    missing = {found["part"] for name in wanted - stored.keys() if (found := _IN_LAYER.match(name))}
    weights = ((name, checkpoint.tensor(stored[name])) for name in sorted(wanted & stored.keys()))
    return {part: value for part, value in base_parts(weights, with_rows).items() if part not in missing}


def different_parts(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """The parts that both have, and that differ."""
    return [part for part in first if part in second and not same_base(first[part], second[part])]
