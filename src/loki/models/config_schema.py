"""What a model's config.json, its weight index and its tokenizer files must look like, before Transformers reads them.

Only what decides sizes or is read by LoKI is declared; all else is the model family's own business.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from loki.errors import LokiError
from loki.inputs import Strict, TensorEntry, checked, shown

Name = Annotated[str, Field(min_length=1, max_length=500)]
FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]  # leads to no other folder
Count = Annotated[int, Field(ge=1, lt=2**40)] | None
Positive = Annotated[FiniteFloat, Field(gt=0)] | None
TokenId = Annotated[int, Field(ge=-1, lt=2**31)]  # -1 stands for none in some families
# The same things under the names that families give them.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_WIDTHS = ("vocab_size", "intermediate_size", "ffn_dim", "n_inner", "num_attention_heads", "n_head", "head_dim")
_PACKED = 16  # 2-bit weights in a tensor of int32


class RopeParameters(Strict):
    """How positions are told; of all layers, or of those of each type."""

    rope_type: Name | None = None
    type: Name | None = None
    full_attention: "RopeParameters | None" = None
    sliding_attention: "RopeParameters | None" = None


class ModelConfiguration(Strict):
    """Fields of config.json; every one may be absent, as families call things by different names."""

    model_type: Name | None = None
    architectures: list[Name] | None = None
    num_hidden_layers: Count = None
    n_layer: Count = None
    n_layers: Count = None
    num_layers: Count = None
    hidden_size: Count = None
    n_embd: Count = None
    d_model: Count = None
    vocab_size: Count = None
    intermediate_size: Count | Annotated[list[Count], Field(min_length=1)] = None
    ffn_dim: Count = None
    n_inner: Count = None
    num_attention_heads: Count | list[Count] = None
    n_head: Count = None
    num_key_value_heads: Count | list[Count] = None
    head_dim: Count = None
    max_position_embeddings: Count = None
    rms_norm_eps: Positive = None
    layer_norm_eps: Positive = None
    layer_norm_epsilon: Positive = None
    initializer_range: Annotated[FiniteFloat, Field(ge=0)] | None = None
    attention_dropout: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0  # without a value nothing can be trained
    rope_theta: Positive = None
    rope_parameters: RopeParameters | None = None
    rope_scaling: RopeParameters | None = None
    tie_word_embeddings: bool | None = None
    use_cache: bool | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    return_dict: bool | None = None
    is_encoder_decoder: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    dtype: Name | None = None
    torch_dtype: Name | None = None
    hidden_act: Name | None = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | None = None
    transformers_version: str | None = None
    quantization_config: dict[str, Any] | None = None
    auto_map: dict[str, Any] | None = None
    text_config: "ModelConfiguration | None" = None
    # What a LoKI model adds.
    target_pos: list[list[Annotated[int, Field(ge=0, lt=2**31)]]] | None = None
    base_model_name_or_path: Name | None = None
    base_fingerprint: Name | None = None
    base_rows_fingerprint: Name | None = None
    base_dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None


class WeightIndex(Strict):
    """model.safetensors.index.json: which file holds which tensor."""

    metadata: dict[str, Any] | None = None
    weight_map: Annotated[
        dict[str, Annotated[str, Field(pattern=r"^[^/\\\x00]+\.safetensors$", max_length=255)]], Field(min_length=1)
    ]


class NamedTemplate(Strict):
    """One of several chat templates; Transformers saves each to a file of its name."""

    name: FileName
    template: str


class TokenizerConfiguration(Strict):
    """tokenizer_config.json; every field may be absent."""

    tokenizer_class: Name | None = None
    chat_template: str | list[NamedTemplate] | dict[FileName, str] | None = None
    model_max_length: Annotated[FiniteFloat, Field(ge=1)] | None = None  # 1e30 where nobody set it
    padding_side: Name | None = None
    truncation_side: Name | None = None
    added_tokens_decoder: dict[str, dict[str, Any]] | None = None
    extra_special_tokens: list[Any] | dict[str, Any] | None = None
    additional_special_tokens: list[Any] | None = None
    clean_up_tokenization_spaces: bool | None = None
    auto_map: dict[str, Any] | None = None


class GenerationFields(Strict):
    """generation_config.json; declared is what LoKI reads, and what changes the type of a model's outputs."""

    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    output_logits: bool | None = None
    output_scores: bool | None = None
    return_dict_in_generate: bool | None = None
    use_cache: bool | None = None
    do_sample: bool | None = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | None = None
    transformers_version: str | None = None


def check_configuration(value: Any, file: Path, tensors: Mapping[str, TensorEntry]) -> None:
    """Check a model configuration, and that it describes no model much larger than the weights beside it.

    Transformers would make whatever it describes, layer by layer: for ever, or until memory is full.

    Args:
        value: what config.json holds.
        file: its path, for the message.
        tensors: of the checkpoint beside it; empty if there is none.

    Raises:
        LokiError: names the field that is wrong.
    """
    origin = f"model configuration {file}"
    advice = "correct it, or fetch or save the model again"
    fields = checked(ModelConfiguration, value, origin, advice=advice)
    if not tensors:
        return
    elements = _PACKED * sum(entry.elements for entry in tensors.values())
    for part in (fields, *([fields.text_config] if fields.text_config else [])):
        layers = _first(part, _LAYERS)
        if layers is not None and layers[1] > len(tensors):
            raise LokiError(
                f"{origin}: {layers[0]} is {layers[1]}, but the weights hold only {len(tensors)} tensors: {advice}"
            )
        hidden = _first(part, _HIDDEN) or ("hidden_size", 1)
        for width in (hidden, *(_first(part, (name,)) for name in _WIDTHS)):
            if width is not None and width[1] * hidden[1] > max(elements, 2**24):
                raise LokiError(
                    f"{origin}: {width[0]} is {shown(width[1])}, far more than the weights beside it hold: {advice}"
                )


def _first(part: ModelConfiguration, names: tuple[str, ...]) -> tuple[str, int] | None:
    found = ((name, getattr(part, name)) for name in names)
    return next(((name, value) for name, value in found if isinstance(value, int)), None)
