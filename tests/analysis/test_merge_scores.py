from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from loki.analysis.merge_scores import merge_scores
from loki.artefacts.scores import ScoresReader
from loki.errors import LokiError
from tests.artefacts.scores_files import make_provenance, make_records, write_scores

SCORES = np.random.default_rng(0).normal(size=(9, 3, 20)).astype(np.float32)


def test_parts_come_one_after_the_other(tmp_path: Path) -> None:
    parts = [
        write_scores(tmp_path / "a.h5", SCORES[:4], source="a.jsonl", source_digest="aa"),
        write_scores(tmp_path / "b.h5", SCORES[4:5], first=4, source="b.jsonl", source_digest="bb"),
        write_scores(tmp_path / "c.h5", SCORES[5:], first=5, source="b.jsonl", source_digest="cc"),
    ]
    assert merge_scores(parts, tmp_path / "all.h5") == 9
    with ScoresReader(tmp_path / "all.h5") as reader:
        np.testing.assert_array_equal(reader.scores(0, 9), SCORES)
        assert reader.records.sample_ids == make_records(9).sample_ids
        assert reader.records.subjects == make_records(9).subjects
        assert reader.provenance is not None
        assert reader.provenance.source == "a.jsonl + b.jsonl"
        assert reader.provenance.source_digest not in ("aa", "bb", "cc")
        assert reader.provenance.differences(make_provenance()) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"definition": "paper"}, "definition captum and paper"),
        ({"steps": 9}, "steps 7 and 9"),
        ({"ig_method": "riemann_left"}, "ig_method riemann_trapezoid and riemann_left"),
        ({"model_fingerprint": "beef"}, "model_fingerprint f00d and beef"),
        ({"config_digest": "dead"}, "config_digest c0de and dead"),
        ({"dtype": "bfloat16"}, "dtype float32 and bfloat16"),
        ({"absolute": True}, "absolute False and True"),
        ({"quantity": "logit"}, "quantity probability and logit"),
        ({"position": -2}, "position -1 and -2"),
    ],
)
def test_parts_that_do_not_belong_together(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    first = write_scores(tmp_path / "a.h5", SCORES[:4])
    second = write_scores(tmp_path / "b.h5", SCORES[4:], first=4, **changes)
    with pytest.raises(LokiError, match=f"differ in {named}: "):
        merge_scores([first, second], tmp_path / "all.h5")
    assert not (tmp_path / "all.h5").exists()


def test_files_of_older_releases_have_no_digest_of_the_configuration(tmp_path: Path) -> None:
    parts = [write_scores(tmp_path / "a.h5", SCORES[:4]), write_scores(tmp_path / "b.h5", SCORES[4:], first=4)]
    with h5py.File(parts[0], "a") as file:
        for name in ("config_digest", "stopping"):
            del file.attrs[name]
    merge_scores(parts, tmp_path / "all.h5")
    with ScoresReader(tmp_path / "all.h5") as reader:
        assert reader.provenance is not None
        assert (reader.provenance.config_digest, reader.provenance.stopping) == ("c0de", {})


def test_other_shapes(tmp_path: Path) -> None:
    first = write_scores(tmp_path / "a.h5", SCORES[:4])
    second = write_scores(tmp_path / "b.h5", SCORES[4:, :2], first=4)
    with pytest.raises(LokiError, match=r"3 layers of 20 .*2 layers of 20"):
        merge_scores([first, second], tmp_path / "all.h5")


def test_the_same_sample_twice(tmp_path: Path) -> None:
    first = write_scores(tmp_path / "a.h5", SCORES[:5])
    second = write_scores(tmp_path / "b.h5", SCORES[4:], first=4)
    with pytest.raises(LokiError, match=r"sample q:4 .*a\.h5 .*b\.h5"):
        merge_scores([first, second], tmp_path / "all.h5")


def test_published_files_cannot_be_merged(tmp_path: Path) -> None:
    first = write_scores(tmp_path / "a.h5", SCORES)
    with h5py.File(tmp_path / "published.h5", "w") as file:
        file.create_dataset("dataset", data=SCORES)
    with pytest.raises(LokiError, match=r"published\.h5 .*how its scores"):
        merge_scores([first, tmp_path / "published.h5"], tmp_path / "all.h5")


def test_damaged_parts_leave_no_output(tmp_path: Path) -> None:
    broken = SCORES[4:].copy()
    broken[1, 0, 0] = np.nan
    first = write_scores(tmp_path / "a.h5", SCORES[:4])
    second = write_scores(tmp_path / "b.h5", broken, first=4)
    with pytest.raises(LokiError, match="sample q:5, layer 0"):
        merge_scores([first, second], tmp_path / "all.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_an_existing_output_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    parts = [
        write_scores(tmp_path / "a.h5", SCORES[:4]),
        write_scores(tmp_path / "b.h5", SCORES[4:], first=4),
    ]
    (tmp_path / "all.h5").write_text("mine")
    with pytest.raises(LokiError, match="exists already"):
        merge_scores(parts, tmp_path / "all.h5")
    assert (tmp_path / "all.h5").read_text() == "mine"
    assert merge_scores(parts, tmp_path / "all.h5", overwrite=True) == 9


def test_one_file_is_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match="two scores files"):
        merge_scores([write_scores(tmp_path / "a.h5", SCORES)], tmp_path / "all.h5")
