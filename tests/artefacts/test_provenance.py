import json
from pathlib import Path

import pytest

from loki.artefacts.provenance import Provenance, combined_provenance, config_digest
from tests.artefacts.scores_files import make_provenance


def test_attributes_and_back() -> None:
    provenance = make_provenance(versions={"torch": "2.11"}, stopping={"until_stable": 0.9, "quotas": [10.0]})
    assert Provenance.from_attributes(provenance.attributes()) == provenance


@pytest.mark.parametrize(("missing", "readable"), [("config_digest", True), ("stopping", True), ("steps", False)])
def test_what_older_and_published_files_lack(missing: str, readable: bool) -> None:
    attributes = make_provenance().attributes()
    del attributes[missing]
    assert (Provenance.from_attributes(attributes) is not None) == readable


def test_differences_are_named_and_an_unknown_configuration_is_none() -> None:
    own, other = make_provenance(), make_provenance(steps=9, config_digest="")
    assert own.differences(other) == ["steps 7 and 9"]
    assert own.differences(make_provenance(config_digest="dead")) == ["config_digest c0de and dead"]


def test_combined() -> None:
    parts = [make_provenance(stopping={"until_stable": 0.9}), make_provenance(source="b.jsonl", engine="auto")]
    both = combined_provenance(parts)
    assert (both.source, both.engine, both.stopping) == ("q.jsonl + b.jsonl", "auto + fast", {})


@pytest.mark.parametrize(
    ("changes", "matters"),
    [
        ({"rope_theta": 1e6}, True),
        ({"text_config": {"rope_theta": 1e6}}, True),
        ({"_name_or_path": "b", "dtype": "bfloat16", "use_cache": False, "auto_map": {}}, False),
        ({"text_config": {"hidden_size": 8, "dtype": "bfloat16"}}, False),
    ],
)
def test_digest_of_what_a_model_computes(tmp_path: Path, changes: dict, matters: bool) -> None:
    config = {"rope_theta": 1e4, "text_config": {"hidden_size": 8}}
    digests = []
    for changed in ({}, changes):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
        digests.append(config_digest(tmp_path))
    assert (digests[0] != digests[1]) == matters
