"""The MLP output projections are found in every family, by entry or by structure."""

import pytest
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from loki.errors import LokiError
from loki.models.architectures import LOKI_FAMILIES, mlp_outputs
from loki.models.experts import down_projections
from tests.tiny_models import tiny_model

BY_STRUCTURE = {
    "olmo2": "model.layers.0.mlp.down_proj",
    "gpt_neox": "gpt_neox.layers.0.mlp.dense_4h_to_h",
    "phi": "model.layers.0.mlp.fc2",
    "opt": "model.decoder.layers.0.fc2",
    "recurrent_gemma": "model.layers.0.mlp_block.down_proj",
    "ctrl": "transformer.h.0.ffn.2",
}


@pytest.mark.parametrize("family", LOKI_FAMILIES)
def test_listed_families(family: str) -> None:
    model = tiny_model(family)
    projections = down_projections(model)
    assert list(projections) == [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)]
    for name, projection in projections.items():
        assert model.get_submodule(name) is projection
        assert projection.weight.shape == (32, 48)


@pytest.mark.parametrize(("family", "first"), BY_STRUCTURE.items())
def test_other_families_are_found_by_structure(family: str, first: str) -> None:
    assert next(iter(down_projections(tiny_model(family)))) == first


def test_an_output_that_another_linear_gates_is_attributed_as_a_block() -> None:
    config = AutoConfig.for_model("rwkv", vocab_size=8, hidden_size=16, attention_hidden_size=16, num_hidden_layers=2)
    outputs = mlp_outputs(AutoModelForCausalLM.from_config(config))
    assert [output.projection_name for output in outputs] == [None, None]


def test_gpt2_has_a_projection_but_no_linear_rows() -> None:
    model = tiny_model("gpt2")
    assert mlp_outputs(model)[0].projection_name == "transformer.h.0.mlp.c_proj"
    with pytest.raises(LokiError, match=r"transformer\.h\.0 .*gpt2"):
        down_projections(model)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_mixture_of_experts_is_attributed_at_the_block(family: str) -> None:
    outputs = mlp_outputs(tiny_model(family))
    assert all(output.projection is None and output.attributed_module is output.block for output in outputs)


@pytest.mark.parametrize("name", ["attn", "mixer", "self_attention"])
def test_what_mixes_tokens_is_no_mlp(name: str) -> None:
    model = tiny_model()
    for layer in model.model.layers:
        layer.register_module(name, nn.ModuleDict({"query": nn.Linear(32, 8), "out": nn.Linear(8, 32)}))
        del layer.mlp, layer.self_attn
    with pytest.raises(LokiError, match=r"MLP .*model\.layers\.0"):
        mlp_outputs(model)
