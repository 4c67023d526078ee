"""What suppression costs SmolLM2-135M-Instruct, against the curve that a study measured by other code.

Runs where LOKI_SMOLLM2 names a directory of that model, and the shared data lies beside the repository.
"""

import math
import os
from pathlib import Path

import pytest

from loki.analysis.analyse import analyse
from loki.analysis.options import AnalysisOptions
from loki.evaluation.ablation import AblationOptions, ablate
from loki.evaluation.options import MeasureOptions
from loki.evaluation.subjects import find_subject
from loki.kva.settings import AttributionSettings

MODEL = os.environ.get("LOKI_SMOLLM2", "")
DATA = Path(__file__).parents[3] / "shared" / "data"
SUBJECTS = ("abstract_algebra", "anatomy", "astronomy", "global_facts", "marketing", "virology")
CHARACTERS = 9_000  # of WikiText-2, about 8 x 256 tokens as in the study
# Perplexity 46.3; with 1% of the rows at zero 47.4, 11,183 and more than 300,000.
BASE, LOWEST_ABSOLUTE, LOWEST_SIGNED, HIGHEST_ABSOLUTE = (math.log(value) for value in (46.3, 47.4, 11_183, 373_511))


@pytest.mark.slow
@pytest.mark.skipif(not MODEL or not DATA.is_dir(), reason="LOKI_SMOLLM2 names no model, or the shared data is missing")
def test_rows_are_told_apart_by_the_size_of_their_score(tmp_path: Path) -> None:
    scores, text = tmp_path / "scores.h5", tmp_path / "text.txt"
    text.write_text((DATA / "text" / "wikitext2_test.txt").read_text()[:CHARACTERS])
    options = AnalysisOptions(dtype="float32", subjects=SUBJECTS, samples_per_subject=1)
    analyse(MODEL, str(DATA / "mmlu"), scores, AttributionSettings(definition="paper"), options)
    found = ablate(find_subject(MODEL), scores, AblationOptions((1,), (0,)), MeasureOptions(texts=(text,)))
    # Other questions, far fewer, and another piece of the text: orders of magnitude, not decimals.
    assert found.rise("lowest absolute", 1) < 4 * (LOWEST_ABSOLUTE - BASE)
    assert found.rise("lowest signed", 1) > (LOWEST_SIGNED - BASE) / 3
    assert found.rise("highest absolute", 1) > (HIGHEST_ABSOLUTE - BASE) / 3
    assert not found.separates("signed")
