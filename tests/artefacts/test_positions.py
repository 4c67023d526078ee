import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loki.artefacts.positions import (
    check_positions,
    check_positions_fit,
    merge_positions,
    read_positions,
    write_positions,
)
from loki.errors import LokiError
from loki.selection.quota import rows_for_quota
from tests.programs import ROOT

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "positions"
SHAPES = {"Llama-3.1-8B-Instruct": (32, 4096), "Qwen2.5-0.5B-Instruct": (24, 896)}


def published_files() -> list[Any]:
    files = sorted(PUBLISHED.glob("*/*.json"))
    return [pytest.param(file, id=f"{file.parent.name}/{file.stem}") for file in files] or [
        pytest.param(None, marks=pytest.mark.skip(reason=f"{PUBLISHED} is not on this machine"))
    ]


@pytest.mark.parametrize("path", published_files())
def test_published_files(path: Path) -> None:
    layers, hidden = SHAPES[path.parent.name]
    published = json.loads(path.read_text())
    positions = read_positions(path)
    check_positions_fit(positions, layers=layers, hidden=hidden)
    assert positions != published  # they are unsorted
    assert [set(rows) for rows in positions] == [set(rows) for rows in published]
    assert all(rows == sorted(rows) for rows in positions)


rows_of_a_layer = st.lists(st.integers(0, 5000), unique=True, max_size=20)


@given(st.lists(rows_of_a_layer, min_size=1, max_size=4).filter(any))
def test_what_is_written_is_read_again_sorted(
    tmp_path_factory: pytest.TempPathFactory, positions: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("positions") / "10.json"
    write_positions(path, positions)
    assert json.loads(path.read_text()) == [sorted(rows) for rows in positions]
    assert read_positions(path) == [sorted(rows) for rows in positions]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"0": [1]}, "list of lists"),
        ([1, 2], "list of lists"),
        ([[[1]]], r"layer 0 holds \[1\]"),
        ([[0], [1.0]], r"layer 1 holds 1\.0"),
        ([[0], ["1"]], "layer 1 holds '1'"),
        ([[True]], "layer 0 holds True"),
        ([[3, -1]], "layer 0 holds -1"),
        ([[0], [4, 2, 4]], "layer 1 .*row 4 .*once"),
        ([], "no row"),
        ([[], []], "no row"),
    ],
)
def test_malformed_positions_name_the_layer_and_the_value(tmp_path: Path, value: object, problem: str) -> None:
    with pytest.raises(LokiError, match=problem):
        check_positions(value)
    path = tmp_path / "10.json"
    path.write_text(json.dumps(value))
    with pytest.raises(LokiError, match=rf"positions file .*10\.json: .*{problem}"):
        read_positions(path)


@pytest.mark.parametrize("text", ["", "[[1, 2]", "rows\n"])
def test_not_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "10.json"
    path.write_text(text)
    with pytest.raises(LokiError, match=r"positions file .*10\.json is not JSON"):
        read_positions(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match=r"positions file .*none\.json .*exist"):
        read_positions(tmp_path / "none.json")


def test_another_model() -> None:
    check_positions_fit([[0], []], layers=2, hidden=1)
    with pytest.raises(LokiError, match=r"2 layers.* 3"):
        check_positions_fit([[0], [1]], layers=3, hidden=8)
    with pytest.raises(LokiError, match=r"layer 1 .*row 8, .*0 to 7"):
        check_positions_fit([[7], [8, 2]], layers=2, hidden=8)


def test_an_existing_file_stays_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "10.json"
    write_positions(path, [[1]])
    with pytest.raises(LokiError, match="exists already"):
        write_positions(path, [[2]])
    assert read_positions(path) == [[1]]
    write_positions(path, [[2]], overwrite=True)
    assert read_positions(path) == [[2]]


def test_malformed_positions_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match="more than once"):
        write_positions(tmp_path / "10.json", [[1, 1]])
    assert not list(tmp_path.iterdir())


def test_merged_positions_hold_the_rows_of_all() -> None:
    assert merge_positions([[[3, 1], []], [[1, 2], [7]]]) == [[1, 2, 3], [7]]


@pytest.mark.parametrize("parts", [[], [[[1]], [[1], [2]]]])
def test_positions_of_different_models_do_not_merge(parts: list[list[list[int]]]) -> None:
    with pytest.raises(LokiError, match="cannot be joined"):
        merge_positions(parts)


@pytest.mark.parametrize(("model", "layers", "hidden"), [("SmolLM2-135M-Instruct", 30, 576), ("gemma-3-270m", 18, 640)])
def test_ready_made_positions_are_layer_balanced(model: str, layers: int, hidden: int) -> None:
    smaller: list[set[int]] = [set()] * layers
    for quota in (10, 20, 30):
        positions = read_positions(ROOT / "kva_result" / "pos_json" / model / f"{quota}.json")
        assert check_positions(positions, layers=layers, hidden=hidden) == positions
        assert {len(rows) for rows in positions} == {rows_for_quota(quota, hidden)}
        shared = [len(set(rows) & fewer) / max(1, len(fewer)) for rows, fewer in zip(positions, smaller, strict=True)]
        assert quota == 10 or min(shared) > 0.5  # not nested: every quota has votes of its own
        smaller = [set(rows) for rows in positions]
