import pytest

from loki.cli.parsing import parse_batch_size, parse_bytes, parse_quotas
from loki.errors import LokiError


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 2**33), ("500MB", 5 * 10**8), ("1000000", 10**6), ("1.5 gib", 3 * 2**29), ("64k", 64000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "lots", "8GBs", "0.1"])
def test_no_size(text: str) -> None:
    with pytest.raises(LokiError, match="bytes"):
        parse_bytes(text)


def test_quotas() -> None:
    assert parse_quotas("5,10, 12.5") == [5.0, 10.0, 12.5]
    for text in ("", "5;10", "5,10,5.0"):
        with pytest.raises(LokiError, match="quota"):
            parse_quotas(text)


def test_batch_sizes() -> None:
    assert (parse_batch_size("auto"), parse_batch_size("8")) == ("auto", 8)
    with pytest.raises(LokiError, match="'big'"):
        parse_batch_size("big")
