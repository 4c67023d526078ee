import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loki.errors import LokiError
from loki.implanting.peft.positions_codec import decode_positions, encode_positions


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


def test_the_mask_of_an_8b_model_takes_22_kb():
    positions = [list(range(0, 4096, 3))] * 32
    assert len(json.dumps(encode_positions(positions, 4096))) < 22_000


def test_a_row_beyond_the_mask_is_refused():
    with pytest.raises(LokiError, match="layer 1 lists row 8 of only 8 rows"):
        encode_positions([[0], [8]], 8)


@pytest.mark.parametrize(
    "damage",
    [{"bitmask": "gQAA"}, {"bitmask": "?"}, {"bitmask": None}, {"layers": 3}, {"rows": "many"}, {"layers": 0}],
)
def test_a_damaged_mask_is_refused(damage):
    with pytest.raises(LokiError, match="positions of the adapter are damaged"):
        decode_positions({**encode_positions([[0, 7], [8]], 16), **damage})


def test_a_mask_without_a_field_is_refused():
    with pytest.raises(LokiError, match="damaged"):
        decode_positions({"layers": 1, "rows": 8})
