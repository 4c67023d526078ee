import pytest
import torch
from torch import nn

from loki.kva.hooks import hidden_states, input_hook, output_hook, with_hidden_states


@pytest.mark.parametrize("kind", ["output", "input"])
def test_hooks_are_gone_after_their_block_however_it_ends(kind: str) -> None:
    module, value = nn.Identity(), torch.ones(2)
    hook = (
        output_hook(module, lambda output: output + 1)
        if kind == "output"
        else input_hook(module, lambda arguments, keywords: ((arguments[0] + 1,), keywords))
    )
    with pytest.raises(KeyboardInterrupt), hook:
        assert module(value).tolist() == [2, 2]
        raise KeyboardInterrupt
    assert module(value).tolist() == [1, 1]


def test_none_leaves_the_output_as_it_is() -> None:
    module, seen = nn.Identity(), []
    with output_hook(module, seen.append):
        module(torch.ones(1))
    assert [tensor.tolist() for tensor in seen] == [[1]]


def test_outputs_that_are_tuples_keep_the_rest() -> None:
    output = (torch.zeros(1), "attention")
    assert hidden_states(output) is output[0]
    assert with_hidden_states(output, torch.ones(1)) == (torch.ones(1), "attention")
