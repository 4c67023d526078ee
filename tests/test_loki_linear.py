"""The published project's `apply_loki_linear`."""

import pytest

from loki.errors import LokiError
from loki.implanting.splitting import loki_linears
from loki.loki_linear import apply_loki_linear
from tests.tiny_models import tiny_model


def test_rows_are_those_given_or_of_the_configuration() -> None:
    model = tiny_model()
    with pytest.raises(LokiError, match="target_pos"):
        apply_loki_linear(model)
    assert apply_loki_linear(model, [[1, 2], [], [31]]) is model
    assert [linear.rows.tolist() for linear in loki_linears(model).values()] == [[1, 2], [31]]
    before = loki_linears(model)
    assert loki_linears(apply_loki_linear(model)) == before
    configured = tiny_model()
    configured.config.target_pos = [[3], [0], []]
    assert [linear.rows.tolist() for linear in loki_linears(apply_loki_linear(configured)).values()] == [[3], [0]]
