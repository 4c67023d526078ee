from dataclasses import replace

import pytest

from loki.calibration.samples import Sample, digest_of

SAMPLE = Sample("law/0", "law", [3, 4], None)


def test_digest_is_that_of_the_content() -> None:
    again = Sample("law/0", "law", [3, 4], None)
    assert digest_of([SAMPLE, again]) == digest_of([again, SAMPLE])
    assert len(digest_of([])) == 64


@pytest.mark.parametrize(
    "other",
    [
        [],
        [SAMPLE, SAMPLE],
        [replace(SAMPLE, id="law/1")],
        [replace(SAMPLE, subject="")],
        [replace(SAMPLE, input_ids=[34])],
        [replace(SAMPLE, target=0)],
    ],
)
def test_every_field_and_the_number_of_samples_matter(other: list[Sample]) -> None:
    assert digest_of(other) != digest_of([SAMPLE])
