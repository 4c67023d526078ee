from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from loki.errors import LokiError
from loki.kva import KVALlamaForCausalLM, KVAQwenForCausalLM
from tests.kva import naive
from tests.tolerances import assert_close

PROMPT = [5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("kva_class", "base_class", "directory"),
    [(KVALlamaForCausalLM, LlamaForCausalLM, "llama_dir"), (KVAQwenForCausalLM, Qwen2ForCausalLM, "qwen2_dir")],
)
def test_equals_captum_as_published(kva_class, base_class, directory: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(directory)
    model, base = kva_class.from_pretrained(path), base_class.from_pretrained(path)
    input_ids = torch.tensor([PROMPT])
    found = model.compute_integrated_gradients(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        target_token_idx=-1,
        predicted_label=17,
        steps=5,
        method="riemann_right",
    )
    assert [tuple(row.shape) for row in found] == [(base.config.hidden_size,)] * base.config.num_hidden_layers
    assert_close(torch.stack(found), naive.captum_scores(base, PROMPT, 17, steps=5, method="riemann_right"))


def test_label_defaults_to_the_argmax_and_padding_is_left_out(llama_dir: Path) -> None:
    model = KVALlamaForCausalLM.from_pretrained(llama_dir)
    padded = torch.tensor([[2, 2, *PROMPT, 2]])
    mask = torch.tensor([[0, 0, *[1] * len(PROMPT), 0]])
    found = model.compute_integrated_gradients(padded, mask, target_token_idx=-4)
    assert_close(torch.stack(found), naive.captum_scores(model, PROMPT[:-2]))


@pytest.mark.parametrize(
    ("ids", "mask", "index", "message"),
    [
        ([PROMPT, PROMPT], None, -1, "one prompt at a time"),
        ([PROMPT], [[1, 1]], -1, "attention_mask has 2 positions"),
        ([PROMPT], [[1] * 6 + [0]], -1, "target_token_idx"),
        ([PROMPT], None, 7, "target_token_idx"),
    ],
)
def test_bad_arguments_are_refused(llama_dir: Path, ids, mask, index: int, message: str) -> None:
    model = KVALlamaForCausalLM.from_pretrained(llama_dir)
    with pytest.raises(LokiError, match=message):
        model.compute_integrated_gradients(
            torch.tensor(ids), None if mask is None else torch.tensor(mask), target_token_idx=index
        )
