import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from loki.artefacts.provenance import Provenance
from loki.artefacts.scores import SampleRecords, ScoresWriter
from tests.cli.running import Shell
from tests.selection.reference import naive_layer_balanced

SCORES = np.random.default_rng(0).normal(size=(9, 3, 20)).astype(np.float32)


@pytest.fixture
def scores_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `loki analyse` puts scores by default, seen from the folder in which the test runs."""
    monkeypatch.chdir(tmp_path)
    path = Path("kva_result/hdf5/tiny-llama/kva_mmlu.h5")
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=SCORES)
    return path


def scores_of(model: Path, path: Path) -> Path:
    """A scores file of this project, which says what model it is of."""
    provenance = Provenance(
        model=str(model),
        model_fingerprint="f",
        definition="captum",
        steps=7,
        ig_method="riemann_trapezoid",
        engine="fast",
        quantity="probability",
        absolute=False,
        position=-1,
        dtype="float32",
        source="mmlu",
        source_digest="d",
        versions={},
    )
    count = len(SCORES)
    names = [f"law/{index}" for index in range(count)]
    records = SampleRecords(names, names, names, np.zeros(count, np.int64), np.ones(count), np.zeros(count))
    with ScoresWriter(path, *SCORES.shape[1:], provenance) as writer:
        writer.append(SCORES, records)
    return path


@pytest.mark.parametrize(("quota", "name"), [("30", "30"), ("30.0", "30"), ("12.5", "12.5")])
def test_default_output_is_where_the_published_project_puts_it(
    shell: Shell, scores_file: Path, quota: str, name: str
) -> None:
    shell.done("select", scores_file, "--quota", quota)
    written = Path(f"kva_result/pos_json/tiny-llama/{name}.json")
    assert json.loads(written.read_text()) == naive_layer_balanced(SCORES, int(float(quota) / 5))


def test_default_output_is_named_after_the_model_that_was_analysed(shell: Shell, scores_file: Path) -> None:
    shell.done("select", scores_of(Path("models/some-model"), scores_file.with_name("own.h5")), "--quota", 10)
    assert Path("kva_result/pos_json/some-model/10.json").is_file()


def test_says_what_it_selected_and_where_it_is(shell: Shell, scores_file: Path) -> None:
    outcome = shell.done("select", scores_file, "--quota", 10, "--strategy", "global_lowest", "--output", "pos.json")
    assert outcome.out == "6 rows of 3 layers selected (global_lowest, quota 10%): pos.json\n"


def test_an_existing_output_stays_without_overwrite(shell: Shell, scores_file: Path) -> None:
    Path("pos.json").write_text("[[1]]")
    refused = shell("select", scores_file, "--quota", 10, "--output", "pos.json")
    assert (refused.code, Path("pos.json").read_text()) == (2, "[[1]]")
    assert "pos.json exists already" in refused.err
    shell.done("select", scores_file, "--quota", 10, "--output", "pos.json", "--overwrite")
    assert json.loads(Path("pos.json").read_text()) == naive_layer_balanced(SCORES, 2)


def test_an_input_is_not_overwritten(shell: Shell, scores_file: Path) -> None:
    shell.done("select", scores_file, "--quota", 10, "--output", "first.json")
    for output in (scores_file, "first.json"):
        words = ("select", scores_file, "--quota", 10, "--exclude", "first.json", "--output", output, "--overwrite")
        before = Path(output).read_bytes()
        refused = shell(*words)
        assert (refused.code, Path(output).read_bytes()) == (2, before)
        assert "--overwrite would remove" in refused.err


def test_excluded_files_add_up(shell: Shell, scores_file: Path) -> None:
    shell.done("select", scores_file, "--quota", 10, "--output", "first.json")
    shell.done("select", scores_file, "--quota", 10, "--exclude", "first.json", "--output", "second.json")
    shell.done(
        *("select", scores_file, "--quota", 10, "--output", "third.json"),
        *("--exclude", "first.json", "--exclude", "second.json"),
    )
    parts = [json.loads(Path(f"{name}.json").read_text()) for name in ("first", "second", "third")]
    for first, second, third in zip(*parts, strict=True):
        assert len({*first, *second, *third}) == 6


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--quota", "0"], "quota 0.0 is out of range"),
        (["--quota", "-1"], "quota -1.0 is out of range"),
        (["--quota", "nan"], "quota nan is out of range"),
        (["--quota", "1"], "the smallest quota that gives a row is 5"),
        (["--quota", "10", "--strategy", "best"], "strategy 'best' is not known here"),
        (["--quota", "10", "--exclude", "none.json"], "positions file none.json does not exist"),
        (["--quota", "10", "--strategy", "random", "--by", "absolute"], "leave out --by absolute"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    shell: Shell, scores_file: Path, words: list[str], problem: str
) -> None:
    refused = shell("select", scores_file, *words)
    assert refused.code == 2
    assert problem in refused.err
    assert refused.err.count("\n") == 1
    assert not Path("kva_result/pos_json").exists()
