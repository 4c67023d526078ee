"""The comparison in a run directory is made, read back into what is reported, and not made twice."""

import json
from pathlib import Path

import pytest

from loki.evaluation import compare as compare_module
from loki.report.run_comparison import compare_run
from loki.report.run_directory import COMPARISON, read_run
from tests.report.test_page import run_directory

__all__ = ["run_directory"]


def test_a_missing_comparison_is_made_and_read(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_directory / COMPARISON).unlink()
    run = read_run(run_directory)
    assert COMPARISON in run.missing
    compare_run(run)
    assert COMPARISON not in run.missing
    assert run.comparison == json.loads((run_directory / COMPARISON).read_text())
    (found,) = run.comparison["comparisons"]
    assert found["texts"][0]["kl"]["kl"] > 0
    monkeypatch.setattr(compare_module, "find_subject", lambda *_, **__: pytest.fail("compared again"))
    compare_run(run)


def test_without_its_base_a_run_is_not_compared(run_directory: Path, tmp_path: Path) -> None:
    (run_directory / COMPARISON).unlink()
    (run_directory / "run.json").write_text(json.dumps({"model": str(tmp_path / "gone")}))
    run = read_run(run_directory)
    assert "gone" in run.missing["base"]
    compare_run(run)
    assert not (run_directory / COMPARISON).exists()
