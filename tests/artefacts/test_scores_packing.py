import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from loki.artefacts.scores import _packed


@given(hnp.arrays(np.float32, (2, 3, 5), elements=st.floats(width=32)))
def test_hdf5_reads_every_bit(tmp_path_factory: pytest.TempPathFactory, scores: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("packing") / "packed.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "dataset", scores.shape, np.float32, chunks=scores.shape, shuffle=True, compression="gzip"
        )
        dataset.id.write_direct_chunk((0, 0, 0), _packed(scores))
    with h5py.File(path) as file:
        assert file["dataset"][:].tobytes() == scores.tobytes()


def test_scores_become_smaller() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 32, 512)).astype(np.float32) * 1e-5
    assert len(_packed(scores)) < 0.9 * scores.nbytes
