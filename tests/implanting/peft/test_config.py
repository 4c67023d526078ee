import json
from dataclasses import replace

import pytest
from peft import PeftConfig, TaskType

from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.implanting.peft import LoKIConfig
from tests.implanting.peft.adapters import POSITIONS


def test_positions_come_from_a_path_or_a_list(tmp_path):
    write_positions(tmp_path / "pos.json", POSITIONS)
    unsorted = [list(reversed(rows)) for rows in POSITIONS]
    for given in (tmp_path / "pos.json", str(tmp_path / "pos.json"), unsorted):
        assert LoKIConfig(positions=given).positions == POSITIONS


def test_it_survives_saving(tmp_path):
    config = LoKIConfig(positions=POSITIONS, rank=4, base_fingerprint="float32:00000000000000ff")
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["positions"] == POSITIONS
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, LoKIConfig)
    assert (loaded.positions, loaded.rank, loaded.base_fingerprint) == (POSITIONS, 4, config.base_fingerprint)


def test_it_is_for_causal_language_models_and_can_be_copied():
    config = LoKIConfig(positions=POSITIONS)
    assert config.task_type == TaskType.CAUSAL_LM
    assert replace(config, rank=3).positions == POSITIONS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs positions"),
        ({"positions": "missing.json"}, r"missing\.json .*exist"),
        ({"positions": [[0, 0]]}, "row 0 .*once"),
        ({"positions": [[], []]}, "no row"),
        ({"positions": [["3"]]}, "not a row index"),
        ({"positions": [[0]], "rank": 0}, "rank 0 "),
        ({"positions": [[0]], "rank": 1.5}, r"rank 1\.5 "),
        ({"positions": [[0]], "protect": 1.0}, "--protect 1.0"),
        ({"positions": [[0]], "protect": 0.5, "rank": 2}, "protect and rank"),
        ({"positions": [[0]], "moments": "m"}, "moments .*protect"),
    ],
)
def test_bad_input_is_refused_in_one_line(options, message):
    with pytest.raises(LokiError, match=message) as caught:
        LoKIConfig(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION"])
def test_tasks_that_add_a_head_are_refused(task: str) -> None:
    with pytest.raises(LokiError, match=rf"task_type .*{task}.*CAUSAL_LM"):
        LoKIConfig(positions=[[0]], task_type=task)
