"""What an optimiser writes into the active rows is what the next forward pass uses."""

import pytest
import torch
from torch import nn

from loki.implanting.linear import LoKILinear
from tests.tolerances import assert_close


# A fused step does not raise the version counters of the parameters it writes, so these cannot tell of a change.
@pytest.mark.parametrize("fused", [True, False])
def test_forward_sees_every_step(fused: bool) -> None:
    torch.manual_seed(0)
    linear = LoKILinear(nn.Linear(6, 8), target_pos=[1, 5])
    active = [parameter for parameter in linear.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(active, lr=0.1, fused=fused)
    x = torch.randn(3, 6)
    for _ in range(3):
        linear(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert_close(linear(x), nn.functional.linear(x, linear.merged_weight(), linear.merged_bias()))
