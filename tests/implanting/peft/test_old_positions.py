"""Adapters of older releases hold their positions as a bitmask."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loki.errors import LokiError
from loki.implanting.peft import LoKIConfig
from loki.implanting.peft.old_positions import decode_positions


def encode_positions(positions, rows):
    """As the older releases did."""
    selected = np.zeros((len(positions), rows), dtype=bool)
    for layer, indices in enumerate(positions):
        selected[layer, indices] = True
    packed = base64.b64encode(np.packbits(selected).tobytes()).decode("ascii")
    return {"layers": len(positions), "rows": rows, "bitmask": packed}


@st.composite
def positions_and_rows(draw):
    rows = draw(st.integers(1, 70))
    layer = st.sets(st.integers(0, rows - 1)).map(sorted)
    return draw(st.lists(layer, min_size=1, max_size=5).filter(any)), rows


@given(positions_and_rows())
def test_decoding_inverts_encoding(case):
    positions, rows = case
    mask = encode_positions(positions, rows)
    assert decode_positions(json.loads(json.dumps(mask))) == positions
    assert (mask["layers"], mask["rows"]) == (len(positions), rows)


def test_the_first_row_is_the_highest_bit():
    assert encode_positions([[0, 7], [8]], 16)["bitmask"] == "gQAAgA=="


def test_an_adapter_of_an_older_release_is_read(tmp_path):
    old = {"peft_type": "LOKI", "positions": {"layers": 3, "rows": 32, "bitmask": "UAAAAAAAAACBAAAB"}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(old))
    config = LoKIConfig.from_pretrained(str(tmp_path))
    assert (config.positions, config.rows_per_layer) == ([[1, 3], [], [0, 7, 31]], 32)


@pytest.mark.parametrize(
    "damage",
    [{"bitmask": "gQAA"}, {"bitmask": "?"}, {"bitmask": None}, {"layers": 3}, {"rows": "many"}, {"layers": 0}],
)
def test_a_damaged_mask_is_refused(damage):
    with pytest.raises(LokiError, match=r"positions .*damaged"):
        decode_positions({**encode_positions([[0, 7], [8]], 16), **damage})


def test_a_mask_without_a_field_is_refused():
    with pytest.raises(LokiError, match="damaged"):
        decode_positions({"layers": 1, "rows": 8})
