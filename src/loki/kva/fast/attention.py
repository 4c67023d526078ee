"""The engine's attention: an implementation registered with Transformers, in which each pass attends in its own way.

The model's own code still computes queries, keys and values (projections, rotary embedding, normalisation) and its own
attention masks (causal, sliding window, chunks, padding). A pass decides which keys and values they meet.

Shapes: B entries of the batch, T positions, H query heads, K key-value heads, G = H / K query heads per key-value
head, d width of a head's queries and keys, d_v of its values.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from loki.kva.attributor import NotExactError

IMPLEMENTATION = "loki_kva"
# Arguments of attention functions that change the result and that the passes do not reproduce.
_UNSUPPORTED = ("s_aux", "position_bias")


@dataclass(frozen=True)
class Heads:
    """What one attention layer is called with.

    Attributes:
        query: `[B, H, T, d]`, after rotary embedding and normalisation.
        key: `[B, K, T, d]`, likewise.
        value: `[B, K, T, d_v]`.
        mask: `[B or 1, 1, T, T]`, True where a query (third) sees a key (fourth); None means plain causal.
        scaling: factor on query-key products.
        softcap: c in `c * tanh(product / c)`; None means no cap.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None

    def part(self, start: int, stop: int) -> "Heads":
        """Entries `start` to `stop` of the batch; the mask stays as it is."""
        return replace(self, query=self.query[start:stop], key=self.key[start:stop], value=self.value[start:stop])


Attend = Callable[[int, Heads], Tensor]
"""What a pass does at decoder layer l: the attention output `[B, H, T, d_v]`."""

_own_implementation: ContextVar[str] = ContextVar("own_implementation")
_attend: ContextVar[Callable[[nn.Module, Heads], Tensor]] = ContextVar("attend")


def _attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """The attention function that Transformers calls."""
    unsupported = [name for name in _UNSUPPORTED if arguments.get(name) is not None]
    if unsupported or not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise NotExactError(f"its attention uses {', '.join(unsupported) or 'later tokens'}")
    if (key.shape[0], key.shape[2]) != (query.shape[0], query.shape[2]):
        raise NotExactError("its layers attend to keys that are not their own")
    if attention_mask is not None and (attention_mask.dtype != torch.bool or attention_mask.shape[1:2] != (1,)):
        raise NotExactError("its attention mask is not one of visible positions")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if _own_implementation.get() == "sdpa":
        softcap = None  # Transformers' sdpa attention has no softcap and, in some releases, leaves it out silently.
    output = _attend.get()(module, Heads(query, key, value, attention_mask, scaling, softcap))
    return output.transpose(1, 2).contiguous(), None  # [B, T, H, d_v], as Transformers wants it


AttentionInterface.register(IMPLEMENTATION, _attention_function)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@contextmanager
def attention_replaced(model: PreTrainedModel) -> Iterator[None]:
    """Make this module's attention the model's, and put its own back when the block ends.

    Raises:
        NotExactError: if the model does not take its attention from the interface.
    """
    config = model.config
    own: dict[str, str] = {"": config._attn_implementation}
    for name in config.sub_configs:
        implementation = getattr(getattr(config, name), "_attn_implementation", None)
        if implementation is not None:
            own[name] = implementation
    token = _own_implementation.set(own[""])
    try:
        model.set_attn_implementation(IMPLEMENTATION)
        if config.get_text_config(decoder=True)._attn_implementation != IMPLEMENTATION:
            raise NotExactError("its attention implementation cannot be chosen")
        yield
    finally:
        _own_implementation.reset(token)
        model.set_attn_implementation(own if len(own) > 1 else own[""])


@contextmanager
def attention_computed_by(attend: Attend, layers: list[nn.Module]) -> Iterator[None]:
    """Let `attend` compute the attention of the decoder `layers` while the block runs."""
    index_of = {id(module): index for index, layer in enumerate(layers) for module in layer.modules()}

    def attend_module(module: nn.Module, heads: Heads) -> Tensor:
        return attend(index_of[id(module)], heads)

    token = _attend.set(attend_module)
    try:
        yield
    finally:
        _attend.reset(token)


def causal_attention(heads: Heads) -> Tensor:
    """Attention of all positions to themselves and earlier ones, `[B, H, T, d_v]`.

    A mask made for fewer entries than the batch has is repeated over it.
    """
    query, key, value, mask = heads.query, heads.key, heads.value, heads.mask
    if mask is not None and mask.shape[0] not in (1, query.shape[0]):
        mask = mask.repeat(query.shape[0] // mask.shape[0], 1, 1, 1)
    if heads.softcap is not None:
        return _capped_attention(heads, mask)
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.is_cuda and mask is not None:
        # No fused CUDA kernel takes both a mask and grouped queries.
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        groups = 1
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=heads.scaling, enable_gqa=groups > 1
    )


def _capped_attention(heads: Heads, mask: Tensor | None) -> Tensor:
    query, key, value = heads.query, heads.key, heads.value
    entries, query_heads, length, _ = query.shape
    grouped = query.view(entries, key.shape[1], -1, length, query.shape[-1])  # [B, H, T, d] -> [B, K, G, T, d]
    # [B, K, G, T, d] @ [B, K, 1, d, T] -> [B, K, G, T, T]
    products = _softcapped(grouped @ key.unsqueeze(2).transpose(-1, -2) * heads.scaling, heads.softcap)
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()[None, None]
    products = products.masked_fill(~mask.unsqueeze(2), torch.finfo(products.dtype).min)
    output = products.softmax(-1, dtype=torch.float32).to(value.dtype) @ value.unsqueeze(2)  # [B, K, G, T, d_v]
    return output.reshape(entries, query_heads, length, -1)


def last_token_attention(heads: Heads, prefix_key: Tensor, prefix_value: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of one token per entry to a kept prefix and to itself, without copying the prefix for any run or head.

    R runs of B prompts share B prefixes: entry r * B + b meets prefix b.

    Args:
        heads: query, key and value of the token, `[R * B, H or K, 1, d]`.
        prefix_key: keys of the earlier positions, `[B, K, T - 1, d]`.
        prefix_value: their values, `[B, K, T - 1, d_v]`.
        visible: `[B or 1, T - 1]`, True where a position is seen; None means all are.

    Returns:
        `[R * B, H, 1, d_v]`.
    """
    prefixes, kv_heads = prefix_key.shape[:2]
    runs, groups = len(heads.query) // prefixes, heads.query.shape[1] // kv_heads
    # [R * B, H or K, 1, d] -> [R, B, K, G or 1, d] -> [B, K, R, G or 1, d]
    query, key, value = (
        tensor.reshape(runs, prefixes, kv_heads, -1, tensor.shape[-1]).permute(1, 2, 0, 3, 4)
        for tensor in (heads.query, heads.key, heads.value)
    )
    # All runs and heads that share a prefix in one product: [B, K, R * G, d] @ [B, K, d, T - 1] -> [B, K, R * G, T - 1]
    earlier = query.reshape(prefixes, kv_heads, runs * groups, -1) @ prefix_key.transpose(-1, -2)
    itself = (query * key).sum(-1, keepdim=True)  # [B, K, R, G, 1]
    products = torch.cat([earlier.reshape(prefixes, kv_heads, runs, groups, -1), itself], -1) * heads.scaling
    products = _softcapped(products, heads.softcap)  # [B, K, R, G, T]
    if visible is not None:
        seen = pad(visible, (0, 1), value=True)[:, None, None, None]  # [B or 1, 1, 1, 1, T]; the token sees itself
        products = products.masked_fill(~seen, torch.finfo(products.dtype).min)
    weights = products.softmax(-1, dtype=torch.float32).to(value.dtype)
    # [B, K, R * G, T - 1] @ [B, K, T - 1, d_v] -> [B, K, R * G, d_v], and the token's own value
    from_prefix = weights[..., :-1].reshape(prefixes, kv_heads, runs * groups, -1) @ prefix_value
    output = from_prefix.reshape(prefixes, kv_heads, runs, groups, -1) + weights[..., -1:] * value
    # [B, K, R, G, d_v] -> [R, B, K, G, d_v] -> [R * B, H, 1, d_v]
    return output.permute(2, 0, 1, 3, 4).reshape(runs * prefixes, kv_heads * groups, 1, -1)


def _softcapped(products: Tensor, cap: float | None) -> Tensor:
    return products if cap is None else torch.tanh(products / cap) * cap
