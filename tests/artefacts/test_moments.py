import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from loki.artefacts.moments import Moments, MomentsOrigin, write_moments
from loki.errors import LokiError

ORIGIN = MomentsOrigin("m", "fingerprint", "text", "digest", 2, 10, "float32", "0")
Tensors = dict[str, torch.Tensor]
Header = dict[str, str]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    moments = [torch.rand(2, 3, 3), torch.zeros(1, 1, 1)]
    write_moments(tmp_path / "a.safetensors", moments, ORIGIN)
    found = Moments(tmp_path / "a.safetensors")
    assert (found.origin, found.layers) == (ORIGIN, 2)
    for layer, moment in enumerate(moments):
        torch.testing.assert_close(found.second_moment(layer), moment, rtol=0, atol=0)
        diagonal = torch.stack([block.diag() for block in moment]).flatten()
        torch.testing.assert_close(found.mean_square(layer), diagonal, rtol=0, atol=0)
    with pytest.raises(LokiError, match=r"2 layers and no second_moment\.2"):
        found.second_moment(2)


def origin(**changes: Any) -> Callable[[Tensors, Header], object]:
    return lambda _, header: header.update(origin=json.dumps({**json.loads(header["origin"]), **changes}))


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda tensors, header: header.update(format="pt"), "no second moments"),
        (lambda tensors, header: header.update(version="2"), "version '2'"),
        (lambda tensors, header: header.update(origin="{"), "origin is not JSON"),
        (lambda tensors, header: header.pop("origin"), "origin is not JSON"),
        (lambda tensors, header: header.update(origin='{"model": "m"}'), "its model_fingerprint"),
        (lambda tensors, header: header.update(origin="[]"), r"\[\]"),
        (origin(tokens="10"), "tokens: holds '10'"),
        (origin(model=["m"]), r"model: holds \['m'\]"),
        (lambda tensors, header: tensors.pop("mean_square.0"), r"no mean_square\.0"),
        (lambda tensors, header: tensors.update({"second_moment.0": torch.zeros(3)}), r"F32 \[3\]"),
        (lambda tensors, header: tensors.update({"second_moment.0": torch.zeros(1, 2, 3)}), r"F32 \[1, 2, 3\]"),
        (lambda tensors, header: tensors.update({"second_moment.0": torch.zeros(0, 3, 3)}), r"F32 \[0, 3, 3\]"),
        (lambda tensors, header: tensors.update({"mean_square.0": torch.zeros(4)}), r"F32 \[4\]"),
        (lambda tensors, header: tensors.update({"mean_square.0": torch.zeros(6, dtype=torch.int64)}), r"I64 \[6\]"),
    ],
)
def test_a_file_that_contradicts_itself(edit: Callable[[Tensors, Header], object], named: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_moments(file, [torch.rand(2, 3, 3)], ORIGIN)
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    edit(tensors, header)
    save_file(tensors, file, metadata=header)
    with pytest.raises(LokiError, match=f"a.safetensors.*{named}"):
        Moments(file)


def test_no_file_and_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match=r"b\.safetensors does not exist: .*loki moments"):
        Moments(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"abc")
    with pytest.raises(LokiError, match=r"c\.safetensors is truncated"):
        Moments(tmp_path / "c.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number(value: float, tmp_path: Path) -> None:
    tensors = {"second_moment.0": torch.full((1, 2, 2), value), "mean_square.0": torch.ones(2)}
    header = {"format": "loki-moments", "version": "1", "origin": json.dumps(ORIGIN.__dict__)}
    save_file(tensors, tmp_path / "a.safetensors", metadata=header)
    found = Moments(tmp_path / "a.safetensors")
    with pytest.raises(LokiError, match=r"second_moment\.0 holds NaN"):
        found.second_moment(0)
    with pytest.raises(LokiError, match="layer 0"):
        write_moments(tmp_path / "b.safetensors", [tensors["second_moment.0"]], ORIGIN)
    assert not (tmp_path / "b.safetensors").exists()
