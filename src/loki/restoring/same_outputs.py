"""Whether two models compute the same: the fields of their configurations, and their logits to the last bit."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from loki.implanting.splitting import loki_linears
from loki.models.architectures import max_positions, text_config
from loki.models.experts import RowTensor

# What a configuration says of files, of how outputs are returned, and of generating, where it changes no logit.
_WITHOUT_EFFECT = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",  # compared where the weights are
    "eos_token_id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_PROMPT_LENGTHS = (3, 17, 40)


def different_fields(before: PretrainedConfig, after: PretrainedConfig) -> dict[str, str]:
    """The fields of two configurations that differ and change what a model computes, each with what differs.

    Defaults are filled in first, so a field that only one of the files names is compared as well.
    """
    one, other = _flat(before.to_dict()), _flat(after.to_dict())
    return {
        name: f"{one.get(name)!r} became {other.get(name)!r}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    }


def probe_prompts(config: PretrainedConfig) -> list[torch.Tensor]:
    """A few prompts of tokens drawn with a fixed seed, `[1, T]` each, as long as the model takes."""
    generator = torch.Generator().manual_seed(0)
    longest = max_positions(config) or max(_PROMPT_LENGTHS)
    vocabulary = text_config(config).vocab_size
    return [torch.randint(vocabulary, (1, min(length, longest)), generator=generator) for length in _PROMPT_LENGTHS]


@torch.no_grad()
def logits_of(model: PreTrainedModel, prompts: list[torch.Tensor]) -> list[torch.Tensor]:
    """The logits of each prompt, `[1, T, vocabulary]`, on the CPU."""
    return [model(input_ids=prompt.to(model.device), use_cache=False).logits.cpu() for prompt in prompts]


@torch.no_grad()
def put_rows(model: PreTrainedModel, rows: Iterable[tuple[RowTensor, tuple[Any, ...], torch.Tensor]]) -> None:
    """Write the base model's rows over those of a tuned one.

    Args:
        model: the tuned model, ordinary or a LoKI model.
        rows: every tensor with selected rows, their index in it, and their values.
    """
    for tensor, index, values in rows:
        parameter = model.get_parameter(tensor.parameter)
        held = parameter.data if tensor.part is None else parameter.data[tensor.part]
        held[index] = values.to(parameter)
    for linear in loki_linears(model).values():
        linear.split()


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are equal to the last bit, NaN included."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in _WITHOUT_EFFECT:
            continue
        if isinstance(value, Mapping):
            flat |= _flat({str(key): inner for key, inner in value.items()}, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
