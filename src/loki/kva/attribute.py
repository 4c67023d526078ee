"""`loki.attribute`: the scores of every layer of a model in hand, in one call."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.errors import LokiError
from loki.kva.attributor import Attribution
from loki.kva.auto import make_attributor
from loki.kva.prompts import without_padding
from loki.kva.settings import AttributionSettings, Definition, Engine, IgMethod, Quantity, Sensitivity

Inputs = Tensor | Sequence[int] | Sequence[Sequence[int]] | str | Sequence[str] | Mapping[str, Any]


def attribute(
    model: PreTrainedModel,
    inputs: Inputs,
    *,
    attention_mask: Tensor | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    targets: Sequence[int | None] | int | None = None,
    definition: Definition | str = AttributionSettings.definition,
    steps: int = AttributionSettings.steps,
    ig_method: IgMethod | str = AttributionSettings.ig_method,
    engine: Engine | str = AttributionSettings.engine,
    quantity: Quantity | str = AttributionSettings.quantity,
    absolute: bool = AttributionSettings.absolute,
    position: int = AttributionSettings.position,
    sensitivity: Sensitivity | str = AttributionSettings.sensitivity,
    seed: int = AttributionSettings.seed,
    per_expert: bool = AttributionSettings.per_expert,
    memory_budget: int | None = None,
) -> list[Attribution]:
    """Attribute a prediction of the model to the MLP outputs of all its layers.

    What Captum's `LayerIntegratedGradients` gives layer by layer comes here for all layers at once: with
    `definition="paper"` at the price of a little more than two forward passes, with `captum` of some dozens instead of
    hundreds. The model is given back as it was: its modes, flags, hooks and attention.

    Args:
        model: a causal language model of Transformers, on any device and of any floating-point type. Of TransformerLens
            or nnsight give the Transformers model that they were made from.
        inputs: the prompts. A tensor of token ids, `[T]` or `[B, T]`; a list of token ids, or of such lists, whose
            lengths may differ; what a tokenizer returns, with its `attention_mask`; or a text or list of texts, with
            `tokenizer`.
        attention_mask: of the shape of a tensor of token ids, 0 on padding (on either side); None means that there is
            none.
        tokenizer: encodes texts, with the special tokens that it adds by itself.
        targets: the token id whose probability is attributed, of each prompt or of the only one; None means the model's
            own argmax.
        definition: see `loki.kva.settings.Definition`; `paper` is the fast one.
        steps: points of the integration rule.
        ig_method: Captum's name of the rule; by default the one that the definition is published with.
        engine: see `loki.kva.settings.Engine`.
        quantity: what F is: the target's `probability`, or its `logit`.
        absolute: scores without their sign.
        position: position whose prediction is attributed, counted like a Python index among a prompt's tokens without
            padding.
        sensitivity: of the definition `sensitivity`: `sampled` or `empirical`.
        seed: of the tokens that it draws.
        per_expert: in a mixture of experts, also the scores of each expert, in `Attribution.experts`.
        memory_budget: bytes that may be used beside the model; None means what is free now.

    Returns:
        One `Attribution` per prompt; its `scores`, `[L, D]` float32 on the CPU, hold a score for every layer and output
        node, that is for every row of `down_proj.weight`.

    Raises:
        LokiError: if the model, a prompt, a target or an option cannot be used, and with `engine="fast"` where the
            engine is not exact on this model.

    Example:
        >>> import loki
        >>> from transformers import AutoModelForCausalLM, AutoTokenizer
        >>> model = AutoModelForCausalLM.from_pretrained("models/llama")
        >>> tokenizer = AutoTokenizer.from_pretrained("models/llama")
        >>> (found,) = loki.attribute(model, "The capital of France is", tokenizer=tokenizer, definition="paper")
        >>> tokenizer.decode(found.target), found.probability, found.scores.shape
    """
    settings = AttributionSettings(
        Definition(definition),
        steps,
        IgMethod(ig_method),
        Engine(engine),
        Quantity(quantity),
        absolute,
        position,
        Sensitivity(sensitivity),
        seed,
        per_expert,
    )
    prompts = _token_ids(inputs, attention_mask, tokenizer)
    wanted = [targets] * len(prompts) if targets is None or isinstance(targets, int) else list(targets)
    if isinstance(targets, int) and len(prompts) != 1:
        raise LokiError(f"one target was given for {len(prompts)} prompts: give a list with one for each")
    with make_attributor(model, settings, memory_budget=memory_budget) as attributor:
        return attributor.attribute(prompts, wanted)


def _token_ids(
    inputs: Inputs, attention_mask: Tensor | None, tokenizer: PreTrainedTokenizerBase | None
) -> list[list[int]]:
    """Token ids of every prompt, without padding."""
    if isinstance(inputs, Mapping):
        if "input_ids" not in inputs:
            raise LokiError(f"the inputs hold {', '.join(inputs) or 'nothing'}: input_ids are needed")
        mask = inputs.get("attention_mask") if attention_mask is None else attention_mask
        if mask is None:
            return _token_ids(inputs["input_ids"], None, None)
        if isinstance(mask, Tensor):
            return without_padding(torch.as_tensor(inputs["input_ids"]), mask)
        # A tokenizer that was not asked for tensors gives lists, whose lengths differ unless it padded.
        return [
            [token for token, real in zip(ids, own, strict=True) if real]
            for ids, own in zip(_nested(inputs["input_ids"]), _nested(mask), strict=True)
        ]
    if isinstance(inputs, Tensor):
        return without_padding(inputs, attention_mask)
    if attention_mask is not None:
        raise LokiError("attention_mask goes with a tensor of token ids: lists need none, their lengths may differ")
    items = [inputs] if isinstance(inputs, str) else list(inputs)
    if any(isinstance(item, str) for item in items):
        if tokenizer is None:
            raise LokiError("the inputs are texts: pass the model's tokenizer as tokenizer=..., or token ids")
        return [list(tokenizer(text)["input_ids"]) for text in items]
    return _nested(items)


def _nested(ids: Sequence[Any]) -> list[list[int]]:
    """A list of lists, also of a single one."""
    prompts = [ids] if ids and isinstance(ids[0], int) else ids
    return [[int(token) for token in prompt] for prompt in prompts]
