# Copyright 2026-present the HuggingFace Inc. team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The entries of LoKI in the matrices of PEFT's common tests. `python matrices.py TESTS` puts them into a copy of these.

Two matrices ask for models from the hub and get an entry each, which is not run here: `ALL_CONFIGS` of
`tests/test_decoder_models.py` (`LokiConfig`, `{"task_type": "CAUSAL_LM", "target_modules": None, "quota": 25}`), and of
`tests/test_encoder_decoder_models.py` (the same with `"target_modules": ["wo"]`).
"""

import sys
from pathlib import Path


# `MLP` has `lin0` of 20 rows and `lin1` of 2.
TEST_CASES = [
    ("Vanilla MLP 1 LoKI", {"target_modules": "lin0", "positions": [[0, 3, 7]]}),
    ("Vanilla MLP 2 LoKI", {"target_modules": ["lin0"], "quota": 25}),
    ("Vanilla MLP 3 LoKI", {"target_modules": ["lin0", "lin1"], "positions": [[1, 2], [0]]}),
    ("Vanilla MLP 4 LoKI", {"target_modules": ["lin0"], "positions": [[0, 3, 7]], "rank": 2}),
    ("Vanilla MLP 5 LoKI", {"target_modules": ["lin0"], "positions": [[0, 3, 7]], "modules_to_save": ["lin1"]}),
    ("Vanilla MLP 6 LoKI", {"target_modules": ["lin0"]}),
]
MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [
    (
        "LoKI Same",
        {"target_modules": ["lin0"], "positions": [list(range(12))], "init_weights": False},
        {"target_modules": ["lin0"], "positions": [list(range(6, 20))], "init_weights": False},
    ),
    (
        "LoKI Different",
        {"target_modules": ["lin0"], "positions": [list(range(12))], "init_weights": False},
        {"target_modules": ["lin1"], "positions": [[1]], "init_weights": False},
    ),
]


def add_to(tests: Path) -> None:
    """Put the entries into `test_custom_models.py` of a folder with PEFT's tests."""
    file = tests / "test_custom_models.py"
    text = file.read_text()
    cases = "".join(f"    ({name!r}, 'MLP', LokiConfig, {kwargs!r}),\n" for name, kwargs in TEST_CASES)
    pairs = "".join(
        f"    ({name!r}, 'loki', LokiConfig, {first!r}, {second!r}),\n"
        for name, first, second in MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES
    )
    for before, added in (
        ("\nTEST_CASES = [\n", cases),
        ("\nMULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [\n", pairs),
        ("\nfrom peft import (\n", "    LokiConfig,\n"),
    ):
        if text.count(before) != 1:
            raise ValueError(f"{file} has no single {before.strip()!r}: it is of another release.")
        text = text.replace(before, before + added)
    file.write_text(text)


if __name__ == "__main__":
    add_to(Path(sys.argv[1]))
