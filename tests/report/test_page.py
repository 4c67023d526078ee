"""The report: everything a run holds is on it, and nothing from outside is taken for HTML."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.report.page import write_report
from loki.report.run_directory import read_run
from tests.artefacts.scores_files import write_scores
from tests.evaluation.models import save_changed

SCRIPT = "<script>alert('x')</script>"
VOID = {"meta", "link", "img", "image", "rect", "br"}


class Checker(HTMLParser):
    """Collects the tags of a page, and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def run_directory(llama_dir: Path, tmp_path: Path) -> Path:
    """A run as `loki run` leaves it, with markup in all that comes from outside."""
    path = tmp_path / "run"
    path.mkdir()
    chance = np.random.default_rng(0)
    write_scores(path / "scores.h5", chance.normal(size=(5, 3, 32)).astype(np.float32), source=SCRIPT)
    write_positions(path / "positions.json", [[0, 4], [7], []])
    save_changed(llama_dir, path / "restored", "model.layers.1.mlp.down_proj.weight", 0.1)
    (path / "run.json").write_text(
        json.dumps({"model": str(llama_dir), "calibration": "c0ffee", "quota": 5, "data": SCRIPT, "training": {"a": 1}})
    )
    (path / "trained").mkdir()
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    (path / "trained" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    table = {"title": "Flips", "header": ["task", SCRIPT], "rows": [[SCRIPT, "1"]]}
    found = {
        "comparisons": [{"new": SCRIPT, "verdict": {"outcome": "FAIL"}, "forgetting": {"percent": 1}, "texts": []}],
        "tables": [table],
        "reasons": [SCRIPT],
    }
    (path / "compare.json").write_text(json.dumps(found))
    return path


def test_all_that_a_run_holds_is_there(run_directory: Path) -> None:
    page = write_report(read_run(run_directory)).read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    titles = re.findall(r"<title>(layer [^<]+)</title>", page)
    assert [title.partition(", rank")[0] for title in titles] == ["layer 0, row 0", "layer 0, row 4", "layer 1, row 7"]
    assert "Missing from this run" not in page
    assert page.count("data:image/png") == 2
    assert "loki run" in page


def test_ranks_and_scores_of_the_map_are_those_of_the_file(run_directory: Path) -> None:
    page = write_report(read_run(run_directory)).read_text(encoding="utf-8")
    scores = np.random.default_rng(0).normal(size=(5, 3, 32)).astype(np.float32).mean(axis=0, dtype=np.float64)
    rank = int((scores[1] < scores[1, 7]).sum()) + 1
    assert f"layer 1, row 7, rank {rank} of 32, mean score {scores[1, 7]:.3g}<" in page


def test_nothing_from_outside_is_taken_for_html(run_directory: Path) -> None:
    page = write_report(read_run(run_directory)).read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert "script" not in {tag for tag, _ in checker.seen}
    assert page.count("&lt;script&gt;") >= 6


def test_nothing_is_fetched(run_directory: Path) -> None:
    checker = Checker()
    checker.feed(write_report(read_run(run_directory)).read_text(encoding="utf-8"))
    sources = [value for _, found in checker.seen for name, value in found.items() if name in ("src", "href")]
    assert all(value is not None and value.startswith("data:") for value in sources)


def test_what_is_missing_is_said(run_directory: Path) -> None:
    (run_directory / "scores.h5").write_bytes(b"broken")
    (run_directory / "compare.json").unlink()
    page = write_report(read_run(run_directory)).read_text(encoding="utf-8")
    assert "scores.h5 cannot be read" in page
    assert "compare.json: not compared with the base" in page
    assert "<title>layer 1, row 7</title>" in page


def test_norm_of_the_change_is_that_of_the_selected_rows(run_directory: Path, llama_dir: Path) -> None:
    from loki.models.checkpoint import Checkpoint
    from loki.report.run_directory import layer_changes

    changes = layer_changes(llama_dir, run_directory / "restored", [[0, 4], [7], []])
    name = "model.layers.1.mlp.down_proj.weight"
    before, after = (Checkpoint(path).tensor(name)[[7]] for path in (llama_dir, run_directory / "restored"))
    assert [(change.rows, change.changed) for change in changes] == [(2, 0), (1, 1), (0, 0)]
    assert changes[1].norm == pytest.approx(float((after - before).norm()))
    assert changes[1].relative == pytest.approx(float((after - before).norm() / before.norm()))


def test_bad_input(run_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(LokiError, match="does not exist"):
        write_report(read_run(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LokiError, match="run directory"):
        write_report(read_run(tmp_path / "empty"))
    write_report(read_run(run_directory))
    with pytest.raises(LokiError, match="exists already"):
        write_report(read_run(run_directory))
