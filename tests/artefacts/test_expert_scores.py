"""Scores per expert in a scores file: what is written is read, zeros take no space, what does not fit is refused."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loki.artefacts.expert_scores import NAME, ExpertScores
from loki.artefacts.scores import ScoresReader, ScoresWriter
from loki.errors import LokiError
from tests.artefacts.scores_files import make_provenance, make_records

SCORES = np.random.default_rng(0).normal(size=(9, 3, 20)).astype(np.float32)


def dense_experts(samples: int = 9, seed: int = 0) -> np.ndarray:
    """`[N, 3, 8, 20]`: of layers 1 and 2 two of eight experts have scores."""
    chance = np.random.default_rng(seed)
    dense = np.zeros((samples, 3, 8, 20), np.float32)
    for sample in range(samples):
        for layer in (1, 2):
            dense[sample, layer, chance.choice(8, 2, replace=False)] = chance.normal(size=(2, 20))
    return dense


def as_parts(dense: np.ndarray) -> ExpertScores:
    return ExpertScores.of([{layer: own[layer] for layer in (1, 2)} for own in dense])


def write(path: Path, dense: np.ndarray, step: int) -> Path:
    with ScoresWriter(path, 3, 20, make_provenance(per_expert=True)) as writer:
        for start in range(0, len(dense), step):
            stop = min(start + step, len(dense))
            records = make_records(9).part(start, stop)
            writer.append(SCORES[start:stop], records, as_parts(dense[start:stop]))
    return path


@pytest.mark.parametrize("step", [1, 4, 9])
def test_what_is_written_is_read_by_us_and_by_others(tmp_path: Path, step: int) -> None:
    dense = dense_experts()
    path = write(tmp_path / "scores.h5", dense, step)
    with h5py.File(path) as file:  # as anybody reads it
        np.testing.assert_array_equal(file[NAME][:], dense)
        assert file[NAME].id.get_num_chunks() == 9 * 2 * 2
    with ScoresReader(path) as reader:
        assert reader.experts == 8
        found = reader.expert_scores(2, 6)
        np.testing.assert_array_equal(reader.scores(0, 9), SCORES)
    expected = as_parts(dense[2:6])
    assert found.experts == 8
    np.testing.assert_array_equal(found.places, expected.places)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_a_file_without_them(tmp_path: Path) -> None:
    with ScoresWriter(tmp_path / "scores.h5", 3, 20, make_provenance()) as writer:
        writer.append(SCORES, make_records(9), ExpertScores.none(20))
    with ScoresReader(tmp_path / "scores.h5") as reader:
        assert reader.experts == 0
        assert len(reader.expert_scores(0, 9).scores) == 0
    with h5py.File(tmp_path / "scores.h5") as file:
        assert NAME not in file


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_groups_are_joined_in_any_order(sizes: list[int], chance: Any) -> None:
    total = sum(sizes)
    dense = dense_experts(total)
    order = list(range(total))
    chance.shuffle(order)
    stops = np.cumsum(sizes)
    parts = [as_parts(dense[stop - size : stop]) for size, stop in zip(sizes, stops, strict=True)]
    joined = ExpertScores.joined(parts, sizes, np.array(order))
    found = np.zeros_like(dense)
    found[tuple(joined.places.T)] = joined.scores
    np.testing.assert_array_equal(found, dense[order])


def put_group(file: h5py.File) -> None:
    file.create_group(NAME)


def put_shape(file: h5py.File) -> None:
    file.create_dataset(NAME, shape=(9, 3, 2**40, 20), chunks=(1, 1, 1, 20), dtype=np.float32)


def put_chunks(file: h5py.File) -> None:
    file.create_dataset(NAME, shape=(9, 3, 8, 20), chunks=(9, 3, 8, 20), dtype=np.float32)


def put_samples(file: h5py.File) -> None:
    file.create_dataset(NAME, shape=(8, 3, 8, 20), chunks=(1, 1, 1, 20), dtype=np.float32)


def put_link(file: h5py.File) -> None:
    file[NAME] = h5py.ExternalLink("other.h5", "dataset")


def put_text(file: h5py.File) -> None:
    file.create_dataset(NAME, data="text")


@pytest.mark.parametrize("put", [put_group, put_shape, put_chunks, put_samples, put_link, put_text])
def test_what_does_not_belong_to_the_scores(tmp_path: Path, put: Any) -> None:
    path = write(tmp_path / "scores.h5", dense_experts(), 9)
    with h5py.File(path, "r+") as file:
        del file[NAME]
        put(file)
    with pytest.raises(LokiError, match=NAME), ScoresReader(path):
        pass


def test_not_a_number(tmp_path: Path) -> None:
    dense = dense_experts()
    dense[4, 2, np.flatnonzero(dense[4, 2].any(axis=1))[0], 3] = np.nan
    path = write(tmp_path / "scores.h5", dense, 9)
    with ScoresReader(path) as reader, pytest.raises(LokiError, match="sample q:4, layer 2, expert"):
        reader.expert_scores(0, 9)
    with pytest.raises(LokiError, match="computed: sample q:4, layer 2, expert"):
        as_parts(dense).check_finite(make_records(9).sample_ids, origin="computed")
