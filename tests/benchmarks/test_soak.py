"""What the soak says of runs whose memory and clock are known; and it runs."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.programs import run_python

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("soak")


def looks(soak: Any, memory: Any, seconds: Any) -> list[Any]:
    return [soak.Look(seconds(done), done, memory(done)) for done in range(1, 101)]


def test_a_flat_and_linear_run_passes(soak: Any) -> None:
    found = soak.summary("analyse", 100, looks(soak, lambda done: 500.0 + done % 3, lambda done: 0.01 * done))
    assert found.passed
    assert found.units == 100
    assert found.first == pytest.approx(10)
    assert found.slower == pytest.approx(1)
    assert abs(found.growth) <= 1


def test_memory_that_grows_is_seen(soak: Any) -> None:
    found = soak.summary("analyse", 100, looks(soak, lambda done: 500.0 + done, lambda done: 0.01 * done))
    assert found.growth == pytest.approx(66, abs=1)  # 75 less what is averaged over
    assert not found.passed


def test_memory_that_is_taken_in_the_beginning_is_none_that_grows(soak: Any) -> None:
    found = soak.summary("analyse", 100, looks(soak, lambda done: min(10.0 * done, 200), lambda done: 0.01 * done))
    assert (found.memory, found.growth) == (200, 0)


def test_a_clock_that_is_quadratic_is_seen(soak: Any) -> None:
    found = soak.summary("analyse", 100, looks(soak, lambda done: 500.0, lambda done: 1e-4 * done**2))
    assert found.slower == pytest.approx(3, rel=0.05)
    assert not found.passed


def test_a_run_too_short_to_judge_is_no_success(soak: Any) -> None:
    with pytest.raises(SystemExit, match="7 looks"):
        soak.summary("analyse", 100, looks(soak, lambda done: 1.0, lambda done: done)[:7])


@pytest.mark.slow
def test_a_small_soak_looks_at_all_of_it(tmp_path: Path) -> None:
    program = (
        "import sys, soak, typer; soak.EVERY, soak.MOST_GROWTH, soak.MOST_SLOWER = 0.05, 1e9, 1e9; typer.run(soak.main)"
    )
    run_python(
        "-c", f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); {program}",
        "--samples", 600, "--steps", 30, "--json", tmp_path / "soak.json",
    )  # fmt: skip
    said = json.loads((tmp_path / "soak.json").read_text())
    assert [(one["work"], one["units"]) for one in said["results"]] == [("analyse", 600), ("train", 30)]
    assert all(one["growth"] < 200 for one in said["results"])
    for one in said["results"]:
        assert one["units"] / 2 < said["looks"][one["work"]][-1]["done"] <= one["units"]
