"""Which rows of a model with experts are meant, and where they stand."""

import pytest
import torch

from loki.errors import LokiError
from loki.models.experts import RowTensor, down_projections, layer_rows, row_tensors
from tests.tiny_models import tiny_model

LAYER = "model.layers"
SHARED = {
    "deepseek_v3": ["0.mlp.down_proj", "1.mlp.shared_experts.down_proj", "2.mlp.shared_experts.down_proj"],
    "gemma4_text": ["0.mlp.down_proj", "1.mlp.down_proj", "2.mlp.down_proj"],
    "granitemoehybrid": [f"{layer}.shared_mlp.output_linear" for layer in range(3)],
    "llama4_text": ["0.feed_forward.down_proj", "1.feed_forward.shared_expert.down_proj", "2.feed_forward.down_proj"],
    "qwen3_next": [f"{layer}.mlp.shared_expert.down_proj" for layer in range(3)],
}
DENSE = {
    "deepseek_v3": ["0.mlp.down_proj", None, None],
    "lfm2_moe": ["0.feed_forward.w2", None, None],
    "llama4_text": ["0.feed_forward.down_proj", None, "2.feed_forward.down_proj"],
}


def names(family: str, experts: str) -> list[str | None]:
    found = [rows.projection_name for rows in layer_rows(tiny_model(family), experts)]
    return [None if name is None else name.removeprefix(f"{LAYER}.") for name in found]


@pytest.mark.parametrize("family", SHARED)
def test_shared(family: str) -> None:
    assert names(family, "shared") == SHARED[family]


@pytest.mark.parametrize("family", DENSE)
def test_dense(family: str) -> None:
    assert names(family, "dense") == DENSE[family]
    tensors = row_tensors(tiny_model(family), "dense")
    assert [len(layer) for layer in tensors] == [int(name is not None) for name in DENSE[family]]


@pytest.mark.parametrize(
    ("family", "experts", "said"),
    [
        ("deepseek_v3", None, r"deepseek_v3 .*--experts shared .*--experts dense "),
        ("qwen3_next", "dense", r"--experts dense.*--experts shared "),
        ("lfm2_moe", "shared", r"--experts shared.*--experts dense "),
        ("mixtral", "shared", r"--experts shared.*--experts all "),
        ("llama", "shared", "--experts shared: this llama model has no experts"),
        ("deepseek_v3", "most", "--experts most"),
    ],
)
def test_refused_with_what_there_is(family: str, experts: str | None, said: str) -> None:
    with pytest.raises(LokiError, match=said):
        layer_rows(tiny_model(family), experts)


def test_the_configuration_of_a_loki_model_says_which_are_meant() -> None:
    model = tiny_model("deepseek_v3")
    model.config.experts = "dense"
    assert list(down_projections(model)) == [f"{LAYER}.0.mlp.down_proj"]


def test_index_of_rows() -> None:
    tensor = torch.arange(24).view(2, 3, 4)
    assert torch.equal(tensor[RowTensor("x", 0, 3, "x").at([1])], tensor[1:])
    assert torch.equal(tensor[RowTensor("x", 1, 3, "x").at([0, 2])], tensor[:, [0, 2]])
    assert torch.equal(tensor[RowTensor("x", 2, 3, "x").at([3])], tensor[..., 3:])
    assert tensor[RowTensor("x", 1, 3, "x").at([])].shape == (2, 0, 4)


def test_all() -> None:
    tensors = row_tensors(tiny_model("llama4_text"), "all")
    assert [[(tensor.name.removeprefix(f"{LAYER}."), tensor.axis) for tensor in layer] for layer in tensors] == [
        [("0.feed_forward.down_proj.weight", 0)],
        [("1.feed_forward.shared_expert.down_proj.weight", 0), ("1.feed_forward.experts.down_proj", 2)],
        [("2.feed_forward.down_proj.weight", 0)],
    ]
    square = row_tensors(tiny_model("gpt_oss", intermediate_size=32), "all")[0]
    assert [(tensor.name.rpartition(".")[2], tensor.axis) for tensor in square] == [
        ("down_proj", 2),
        ("down_proj_bias", 1),
    ]
    assert [tensor.axis for tensor in row_tensors(tiny_model("mixtral"), "all")[0]] == [1]
