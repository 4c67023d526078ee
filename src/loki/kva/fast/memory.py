"""How much memory the fast engine's passes take, and how much there is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel

from loki.kva.fast.path import PathPoint
from loki.kva.prompts import PromptError
from loki.models.architectures import text_config

# Of what is free, for allocators' fragmentation and temporaries that are not counted.
_SHARE_OF_FREE = 0.7
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))
# Numbers kept per token and layer for the backward pass, in multiples of the hidden and the intermediate size.
_HIDDEN_TENSORS, _INTERMEDIATE_TENSORS = 16, 4


def free_memory(model: PreTrainedModel) -> int:
    """Bytes that may be used now on the fullest device that holds a part of the model."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type != "meta"}
    return int(
        _SHARE_OF_FREE * min((_free_on(device) for device in devices), default=psutil.virtual_memory().available)
    )


def _free_on(device: torch.device) -> int:
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


def shown_bytes(size: int) -> str:
    """A number of bytes for people: `66.62 KiB`, `1.5 GiB`."""
    unit, name = next((unit, name) for unit, name in _UNITS if size >= unit or name == "bytes")
    return f"{size / unit:.4g} {name}"


@dataclass(frozen=True)
class MemoryCost:
    """Estimates in bytes, for prompts of a given length.

    Attributes:
        prompt: what the record pass keeps of one prompt.
        activations: what one token takes in a layer.
        cached: keys and values of one prompt's earlier positions in one layer; 0 where all points share them.
        logits: what the logits of one point take.
        layers: number of layers.
    """

    prompt: int
    activations: int
    cached: int
    logits: int
    layers: int

    @classmethod
    def of(cls, model: PreTrainedModel, length: int, *, own_prefix: bool) -> "MemoryCost":
        """The cost of prompts of `length` tokens.

        Args:
            model: the model.
            length: tokens of the longest prompt.
            own_prefix: every point has its own earlier positions (definition `captum`).
        """
        config = text_config(model.config)
        size = model.dtype.itemsize
        query_heads = _largest(config, "num_attention_heads") or 1
        heads = _largest(config, "num_key_value_heads") or query_heads
        head_width = _largest(config, "head_dim") or config.hidden_size // query_heads
        cached = 2 * heads * head_width * length * size
        kept_states = 2 * config.hidden_size * length * size if own_prefix else 0
        intermediate = _largest(config, "intermediate_size") or 4 * config.hidden_size
        return cls(
            prompt=config.num_hidden_layers * (cached + kept_states),
            activations=size * (_HIDDEN_TENSORS * config.hidden_size + _INTERMEDIATE_TENSORS * intermediate),
            cached=cached if own_prefix else 0,
            logits=3 * 4 * config.vocab_size,
            layers=config.num_hidden_layers,
        )

    def point(self, point: PathPoint) -> int:
        """What one point of one prompt takes from its prefix pass to the end of its last-token pass."""
        above = self.layers - 1 - point.layer
        return above * (self.cached + self.activations) + self.logits


def parts_within(
    prompts: Sequence[list[int]], needed: Callable[[Sequence[list[int]]], int], budget: int, *, equal_lengths_only: bool
) -> list[list[int]]:
    """Which prompts are computed together: as many at a time, in order, as fit the budget.

    Args:
        prompts: token ids of each.
        needed: bytes that prompts need together.
        budget: bytes that may be used.
        equal_lengths_only: never put prompts of different lengths together.

    Returns:
        Indices of the prompts of every part.

    Raises:
        PromptError: if a prompt does not fit on its own.
    """
    parts: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        longer_part = [*parts[-1], index] if parts else []
        may_join = not equal_lengths_only or len({len(prompts[member]) for member in longer_part}) == 1
        if longer_part and may_join and needed([prompts[member] for member in longer_part]) <= budget:
            parts[-1] = longer_part
            continue
        if (alone := needed([prompt])) > budget:
            raise PromptError(
                index,
                f"its {len(prompt)} tokens need {shown_bytes(alone)} beside the model, but {shown_bytes(budget)} "
                "may be used: raise the memory budget or shorten the prompt",
            )
        parts.append([index])
    return parts


def _largest(config: PretrainedConfig, name: str) -> int:
    """The largest value of a size that may differ from layer to layer; 0 where the configuration has none."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # Transformers does not give one value for all layers where they differ
        value = [getattr(layer, name, None) for layer in config.per_layer_config[:]]
    return max((int(size) for size in (value if isinstance(value, list | tuple) else [value]) if size), default=0)
