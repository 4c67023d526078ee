from pathlib import Path

import h5py
import numpy as np
import pytest

from loki.artefacts.provenance import Provenance
from loki.artefacts.scores import SampleRecords, ScoresReader, ScoresWriter
from loki.errors import LokiError
from tests.artefacts.scores_files import make_provenance, make_records, write_scores

SCORES = np.random.default_rng(0).normal(size=(9, 3, 20)).astype(np.float32)


def write_all(path: Path, scores: np.ndarray, records: SampleRecords, provenance: Provenance, step: int) -> None:
    with ScoresWriter(path, *scores.shape[1:], provenance) as writer:
        for start in range(0, len(scores), step):
            writer.append(scores[start : start + step], records.part(start, start + step))


@pytest.mark.parametrize("step", [1, 4, 9])
def test_what_is_written_is_read(tmp_path: Path, step: int) -> None:
    path = tmp_path / "scores.h5"
    records, provenance = make_records(9), make_provenance(versions={"torch": "2.11"})
    write_all(path, SCORES, records, provenance, step)
    with ScoresReader(path) as reader:
        assert (reader.samples, reader.layers, reader.hidden) == (9, 3, 20)
        assert reader.provenance == provenance
        assert reader.records.sample_ids == records.sample_ids
        assert reader.records.sample_digests == records.sample_digests
        assert reader.records.subjects == records.subjects
        np.testing.assert_array_equal(reader.records.target_token_ids, records.target_token_ids)
        np.testing.assert_array_equal(reader.records.target_probabilities, records.target_probabilities)
        np.testing.assert_array_equal(reader.records.completeness, records.completeness)
        np.testing.assert_array_equal(np.concatenate([block for _, block in reader.chunks()]), SCORES)
        np.testing.assert_array_equal(reader.scores(2, 5), SCORES[2:5])


def test_layout_is_what_other_programs_rely_on(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.h5", SCORES)
    with h5py.File(tmp_path / "scores.h5") as file:
        dataset = file["dataset"]
        assert (dataset.dtype, dataset.shape) == (np.float32, (9, 3, 20))
        assert dataset.chunks is not None
        assert dataset.compression == "gzip"
        assert file.attrs["samples_done"] == 9
        assert file.attrs["definition"] == "captum"
        assert [name.decode() for name in file["sample_ids"][:2]] == ["q:0", "q:1"]


def test_chunks_are_small_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loki.artefacts.scores._READ_BYTES", 2 * 4 * 3 * 20)
    write_scores(tmp_path / "scores.h5", SCORES)
    with ScoresReader(tmp_path / "scores.h5") as reader:
        blocks = list(reader.chunks())
    assert [(start, len(block)) for start, block in blocks] == [(0, 2), (2, 2), (4, 2), (6, 2), (8, 1)]


def test_published_files_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "published.h5", "w") as file:
        file.create_dataset("dataset", data=SCORES.astype(np.float16))
    with ScoresReader(tmp_path / "published.h5") as reader:
        assert reader.provenance is None
        assert reader.records.sample_ids == [str(index) for index in range(9)]
        assert reader.records.target_token_ids.tolist() == [-1] * 9
        block = reader.scores(0, 9)
    assert block.dtype == np.float32
    np.testing.assert_array_equal(block, SCORES.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number_names_sample_and_layer(tmp_path: Path, value: float) -> None:
    broken = SCORES.copy()
    broken[7, 2, 3] = value
    write_scores(tmp_path / "scores.h5", broken)
    with (
        ScoresReader(tmp_path / "scores.h5") as reader,
        pytest.raises(LokiError, match=r"scores\.h5: sample q:7, layer 2: .*NaN"),
    ):
        list(reader.chunks())


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match=r"none\.h5 does not exist"):
        ScoresReader(tmp_path / "none.h5")


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.95])
def test_truncated_file(tmp_path: Path, fraction: float) -> None:
    whole = write_scores(tmp_path / "scores.h5", SCORES).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(LokiError, match=r"cut\.h5 .*truncated"):
        ScoresReader(tmp_path / "cut.h5")


def test_flipped_bits_in_the_scores_are_noticed(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "scores.h5", SCORES)
    with h5py.File(path) as file:
        chunk = file["dataset"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(data)
    with ScoresReader(path) as reader, pytest.raises(LokiError, match="damaged"):
        list(reader.chunks())


@pytest.mark.parametrize(
    ("name", "data"),
    [("dataset", SCORES[0]), ("dataset", SCORES.astype(int)), ("scores", SCORES)],
    ids=["rank 2", "integers", "another name"],
)
def test_other_hdf5_files_are_refused(tmp_path: Path, name: str, data: np.ndarray) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset(name, data=data)
    with pytest.raises(LokiError, match=r"other\.h5 .*'dataset'"):
        ScoresReader(tmp_path / "other.h5")


def test_columns_of_another_length_are_refused(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "scores.h5", SCORES)
    with h5py.File(path, "a") as file:
        file["subjects"].resize(8, axis=0)
    with pytest.raises(LokiError, match=r"subjects .*shape .* 9 samples"):
        ScoresReader(path)
