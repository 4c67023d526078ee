"""All that LoKI knows about model families, and the only place where it knows it.

A family that follows the common layout (decoder layers in one `ModuleList`, an MLP per layer that ends in a linear
projection to the hidden size) needs no entry: it is found by structure. An entry in `LOKI_FAMILIES` gives a family
LoKI model classes (`LoKILlamaForCausalLM`) that `import loki` registers with Transformers' Auto classes.
"""

from dataclasses import dataclass, replace

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loki.errors import LokiError

LOKI_FAMILIES: dict[str, str] = {
    # model_type of the base -> prefix of its Transformers classes
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3",
    "phi3": "Phi3",
}

LOKI_MODEL_TYPE_PREFIX = "loki_"

_MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "moe")
# What normalises the MLP's output, where a family does: Gemma 2 to 4, OLMo 2 and 3, EXAONE 4; GLM-4. Gemma 4 has one of
# its own for the MLP beside experts.
_OUTPUT_NORM_NAMES = ("post_feedforward_layernorm_1", "post_feedforward_layernorm", "post_mlp_layernorm")
_SHARED_NAMES = ("shared_expert", "shared_experts", "shared_mlp")
# Classes of experts that do not say it themselves (`is_transposed`).
_TRANSPOSED_EXPERTS = {"Llama4TextExperts": True}
_PROJECTION_NAMES = (
    *("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "proj_2", "wo", "dense_h_to_4h_out"),
    "output_linear",
)
_MIXER_WORDS = ("attention", "attn", "mixer")


@dataclass(frozen=True)
class MLPOutput:
    """The MLP output of one decoder layer.

    Attributes:
        layer: the decoder layer.
        layer_name: its qualified name in the model, `model.layers.3`.
        block: the MLP block; its output (first element, if a tuple) is added to the residual stream.
        projection: the linear map that makes the block's output (`down_proj`), or None where there is no single one
            (a mixture of experts, an MLP with more than one output projection).
        projection_name: its qualified name, `model.layers.3.mlp.down_proj`, or None.
        sparse: whether the layer has experts, of which a router chooses a few for every token.
        shared: in a sparse layer, the projection that makes the output of the MLP beside the experts, which every token
            goes through (a shared expert); None where there is none.
        shared_name: its qualified name, `model.layers.3.mlp.shared_expert.down_proj`, or None.
        experts: in a sparse layer, the module that holds the experts; None where it is not known.
        experts_name: its qualified name, `model.layers.3.mlp.experts`, or None.
    """

    layer: nn.Module
    layer_name: str
    block: nn.Module
    projection: nn.Linear | Conv1D | None
    projection_name: str | None
    sparse: bool = False
    shared: nn.Module | None = None
    shared_name: str | None = None
    experts: nn.Module | None = None
    experts_name: str | None = None

    @property
    def attributed_module(self) -> nn.Module:
        """The module whose output KVA attributes: the projection, or the whole block where there is none."""
        return self.projection if self.projection is not None else self.block


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the language model itself (composite configurations hold it as `text_config`)."""
    return config.get_text_config(decoder=True)


def max_positions(config: PretrainedConfig) -> int | None:
    """The longest text that the language model takes, in tokens; None where the configuration gives no limit."""
    longest = getattr(text_config(config), "max_position_embeddings", None)
    return int(longest) if longest else None


def mlp_outputs(model: PreTrainedModel) -> list[MLPOutput]:
    """The MLP output of every decoder layer, from the first layer to the last.

    Raises:
        LokiError: if the decoder layers or an MLP in one of them cannot be found.
    """
    config = text_config(model.config)
    stack_name, layers = _decoder_layers(model, config.num_hidden_layers)
    return [
        _mlp_output(layer, f"{stack_name}.{index}", config.hidden_size, model.config.model_type)
        for index, layer in enumerate(layers)
    ]


def output_norm(model: nn.Module, layer_name: str) -> nn.Module | None:
    """The module that normalises the MLP's output before a layer adds it to the residual stream, if there is one.

    Args:
        model: that the layer is in.
        layer_name: its qualified name.
    """
    children = dict(model.get_submodule(layer_name).named_children())
    return next((children[name] for name in _OUTPUT_NORM_NAMES if name in children), None)


def fused_axis(experts: nn.Module, hidden_size: int) -> int | None:
    """Along which dimension of `experts.down_proj` the rows lie, where it holds all experts' output projections.

    1 for `[E, D, d_ff]`, 2 for the transposed `[E, d_ff, D]`, and None where they are held otherwise. Shapes cannot
    tell (GPT-OSS's are square): Transformers says it of most classes, and the others are known here.
    """
    while isinstance(inner := getattr(experts, "base_layer", None), nn.Module):  # adapted by PEFT
        experts = inner
    weight = experts._parameters.get("down_proj")
    # With the classes it is derived from: LoKI derives its own.
    known = (
        _TRANSPOSED_EXPERTS[kind.__name__] for kind in type(experts).__mro__ if kind.__name__ in _TRANSPOSED_EXPERTS
    )
    transposed = getattr(experts, "is_transposed", next(known, None))
    if weight is None or weight.dim() != 3 or transposed is None:
        return None
    axis = 2 if transposed else 1
    return axis if weight.shape[axis] == hidden_size else None


def base_model_type(model_type: str) -> str:
    """`llama` for `loki_llama`; any other model type unchanged."""
    return model_type.removeprefix(LOKI_MODEL_TYPE_PREFIX)


def _decoder_layers(model: PreTrainedModel, count: int) -> tuple[str, nn.ModuleList]:
    # A vision tower can have as many layers as the text model, so that is looked for first.
    text = type(text_config(model.config))
    found = [part for part in model.modules() if isinstance(part, PreTrainedModel) and type(part.config) is text]
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    for scope in (*found[-1:], decoder, model):
        for module in scope.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count and count > 0:
                qualified = next(full for full, candidate in model.named_modules() if candidate is module)
                return qualified, module
    raise LokiError(
        f"no list of {count} decoder layers found in this {model.config.model_type} model: "
        "LoKI needs a decoder-only causal language model"
    )


def _mlp_output(layer: nn.Module, layer_name: str, hidden_size: int, model_type: str) -> MLPOutput:
    for mlp_name in _MLP_NAMES:
        block = getattr(layer, mlp_name, None)
        if isinstance(block, nn.Module):
            projection_name = _output_projection_name(block, hidden_size)
            projection = getattr(block, projection_name) if projection_name else None
            qualified = f"{layer_name}.{mlp_name}.{projection_name}" if projection_name else None
            found = MLPOutput(layer, layer_name, block, projection, qualified)
            return _with_experts(found, f"{layer_name}.{mlp_name}", hidden_size)
    # OPT-like layers hold the projections themselves.
    projection_name = _named_projection(layer, hidden_size)
    if projection_name is not None:
        projection = getattr(layer, projection_name)
        return MLPOutput(layer, layer_name, projection, projection, f"{layer_name}.{projection_name}")
    # The MLP comes after what mixes tokens.
    for name, block in reversed(list(layer.named_children())):
        mixes = any(word in f"{name} {type(block).__name__}".lower() for word in _MIXER_WORDS)
        if not mixes and (last := _last_linear(block, hidden_size)):
            return MLPOutput(layer, layer_name, block, getattr(block, last), f"{layer_name}.{name}.{last}")
    raise LokiError(f"no MLP found in {layer_name} of this {model_type} model: LoKI needs one in every layer")


def _with_experts(output: MLPOutput, block_name: str, hidden_size: int) -> MLPOutput:
    """The same output, with what the layer has of experts."""
    for parent, parent_name in ((output.block, block_name), (output.layer, output.layer_name)):
        experts = getattr(parent, "experts", None)
        if isinstance(experts, nn.Module):
            output = replace(output, experts=experts, experts_name=f"{parent_name}.experts")
            break
    if any(hasattr(output.block, name) for name in ("experts", "router")):
        beside = [(output.block, block_name), (output.layer, output.layer_name)]
        for parent, parent_name in beside:
            for name in _SHARED_NAMES:
                shared = getattr(parent, name, None)
                projection = _output_projection_name(shared, hidden_size) if isinstance(shared, nn.Module) else None
                if projection is not None:
                    qualified = f"{parent_name}.{name}.{projection}"
                    return replace(output, sparse=True, shared=getattr(shared, projection), shared_name=qualified)
        return replace(output, sparse=True)
    if output.experts is not None:  # beside a dense MLP, as in Gemma 4
        return replace(output, sparse=True, shared=output.projection, shared_name=output.projection_name)
    return output


def _output_projection_name(block: nn.Module, hidden_size: int) -> str | None:
    """Name of the child of the MLP `block` that makes its output, if there is exactly one such projection."""
    return _named_projection(block, hidden_size) or _last_linear(block, hidden_size)


def _last_linear(block: nn.Module, hidden_size: int) -> str | None:
    """Name of the last linear child of `block`, if all else in it is linear too and it alone maps to the hidden size.

    Were there another, it could gate this one's output.
    """
    children = {name: child for name, child in block.named_children() if any(True for _ in child.parameters())}
    linears = {name: child for name, child in children.items() if isinstance(child, nn.Linear)}
    to_hidden = [name for name, child in linears.items() if child.out_features == hidden_size]
    is_mlp = len(children) == len(linears) > 1 and to_hidden == list(linears)[-1:]
    return to_hidden[0] if is_mlp else None


def _named_projection(block: nn.Module, hidden_size: int) -> str | None:
    if any(name in ("experts", "router", *_SHARED_NAMES) for name, _ in block.named_children()):
        return None
    for name in _PROJECTION_NAMES:
        child = getattr(block, name, None)
        # A quantised or already split Linear is not an nn.Linear by type but has its attributes.
        if isinstance(child, Conv1D) and child.nf == hidden_size:
            return name
        if isinstance(child, nn.Module) and getattr(child, "out_features", None) == hidden_size:
            return name
    return None
