import errno
import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loki.artefacts import scores as scores_module
from loki.artefacts.hdf5_output import HDF5Output, UnfailingFile
from loki.artefacts.scores import ScoresReader, ScoresWriter
from tests.artefacts.limits import limited
from tests.artefacts.scores_files import make_provenance, make_records, write_scores
from tests.programs import run_python

SCORES = np.random.default_rng(0).normal(size=(40, 2, 50)).astype(np.float32)
FULL = Path("/dev/full")


WRITES = st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=80)), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=WRITES, limit=st.integers(0, 400), first=st.integers(0, 300))
def test_what_cannot_be_written_is_read_as_if_it_were(
    tmp_path: Path, writes: list[tuple[int, bytes]], limit: int, first: int
) -> None:
    expected = bytearray(500)
    end = 0
    file = UnfailingFile(tmp_path / "file")
    with limited(limit):
        for position, data in writes:
            file.seek(position)
            assert (file.write(memoryview(data)), file.tell()) == (len(data), position + len(data))
            expected[position : position + len(data)] = data
            end = max(end, position + len(data))
        assert file.seek(0, os.SEEK_END) == end
        found = memoryview(bytearray(200))
        file.seek(first)
        file.readinto(found)
    file.close()
    assert found == expected[first : first + 200]
    assert (file.error is None) == (end <= limit)
    if file.error is None:
        assert (tmp_path / "file").read_bytes() == expected[:end]


def write_within_every_limit(folder: Path) -> None:
    scores_module._CHUNK_BYTES = 4096  # several chunks
    records, size = make_records(len(SCORES)), write_scores(folder / "whole.h5", SCORES).stat().st_size
    limits = [*range(0, size, size // 37), size - 1, size + 2**16]
    for limit in limits:
        try:
            with limited(limit), ScoresWriter(folder / "scores.h5", 2, 50, make_provenance()) as writer:
                for start in range(0, len(SCORES), 8):
                    writer.append(SCORES[start : start + 8], records.part(start, start + 8))
        except OSError as error:
            assert (error.errno, error.filename, limit < size) == (errno.EFBIG, str(folder / "scores.h5"), True), limit
        else:
            assert limit >= size, limit
            with ScoresReader(folder / "scores.h5") as reader:
                np.testing.assert_array_equal(reader.scores(0, len(SCORES)), SCORES)
    print(len(limits), "limits")


def test_hdf5_survives_a_limit_at_any_moment_and_so_does_the_process(tmp_path: Path) -> None:
    code = f"from tests.artefacts import test_hdf5_output as t; t.write_within_every_limit(t.Path({str(tmp_path)!r}))"
    assert int(run_python("-c", code).stdout.split()[0]) > 30


@pytest.mark.skipif(not FULL.exists(), reason="no device that is full")
def test_a_device_that_is_full() -> None:
    with pytest.raises(OSError, match=str(FULL)) as caught, ScoresWriter(FULL, 2, 50, make_provenance()):
        pass
    assert caught.value.errno == errno.ENOSPC


def test_a_failure_is_said_at_the_end_as_well(tmp_path: Path) -> None:
    output = HDF5Output(tmp_path / "a.h5")
    with limited(0), pytest.raises(OSError, match=r"a\.h5"):  # HDF5 has kept it for itself until then
        output.close()


def test_ctrl_c_comes_up_outside_of_hdf5(tmp_path: Path) -> None:
    output = HDF5Output(tmp_path / "a.h5")

    def write() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        output.file["numbers"] = np.arange(10**5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    try:
        with pytest.raises(KeyboardInterrupt):
            output.do(write)
    finally:
        signal.signal(signal.SIGINT, before)
    output.close()
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["numbers"], np.arange(10**5))
