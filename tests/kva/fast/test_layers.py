import pytest
import torch

from loki.kva.fast.attention import attention_replaced
from loki.kva.fast.layers import LayerCall, find_layers, repeat_batch, split_call
from tests.tiny_models import tiny_model


@pytest.mark.parametrize(
    ("family", "scale"), [("llama", 1.0), ("gpt_neox", 1.0), ("granite", 0.3), ("gemma2", None), ("olmo2", None)]
)
def test_residual_form(family: str, scale: float | None) -> None:
    model = tiny_model(family)
    with attention_replaced(model):
        found = find_layers(model, torch.arange(3, 13)[None])
    assert len(found) == 3
    for own in found.residual_scales:
        assert own is None if scale is None else own == pytest.approx(scale, rel=1e-5)


def test_entries_are_repeated_and_what_broadcasts_is_not() -> None:
    per_prompt, shared = torch.arange(6).view(2, 3), torch.ones(1, 3)
    repeated = repeat_batch({"mask": per_prompt, "rope": (shared, None)}, batch=2, repeats=2)
    assert torch.equal(repeated["mask"], torch.cat([per_prompt, per_prompt]))
    assert repeated["rope"][0] is shared


def test_a_call_is_repeated_with_more_entries() -> None:
    scales = torch.tensor([[1.0], [2.0]])
    layer = torch.nn.Bilinear(1, 1, 1)
    layer.forward = lambda hidden, scale: (hidden * scale,)
    call = LayerCall(2, (scales,), {})
    assert call(layer, torch.ones(4, 1)).flatten().tolist() == [1, 2, 1, 2]


def test_hidden_states_come_first_or_by_name() -> None:
    hidden = torch.zeros(1)
    assert split_call((hidden, 1), {"a": 2}) == (hidden, (1,), {"a": 2})
    assert split_call((), {"hidden_states": hidden, "a": 2}) == (hidden, (), {"a": 2})
