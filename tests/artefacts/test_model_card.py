from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from loki.artefacts.model_card import ADAPTER, LOKI_MODEL, RESTORED, Kind, write_damage, write_model_card
from loki.files import write_json
from tests.artefacts.limits import limited


def card(directory: Path, base: str = "org/model", kind: Kind = RESTORED, **record: object) -> str:
    write_json(directory / "training.json", {"data": "cafe", **record}, overwrite=True)
    options = {"name": "mine", "base": base, "positions": [[0, 1], [], [5]], "hidden": 20, "trained": directory}
    write_model_card(directory, kind, **options)
    return (directory / "README.md").read_text(encoding="utf-8")


def test_says_what_was_changed(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert "3 rows of `down_proj.weight` in 2 layers (5% of the 60 rows)" in text
    assert "SHA-256 cafe" in text
    data = ModelCard(text).data
    assert (data.base_model, data.library_name, data.tags) == (
        "org/model",
        "transformers",
        ["loki", "knowledge-implanting"],
    )


@pytest.mark.parametrize(("kind", "library"), [(LOKI_MODEL, "transformers"), (ADAPTER, "peft")])
def test_says_what_the_directory_is(kind: Kind, library: str, tmp_path: Path) -> None:
    text = card(tmp_path, kind=kind)
    assert "org/model" in text.partition("## Rows")[0]
    assert "`loki restore`" in text
    assert "Damage\n" not in text
    assert ModelCard(text).data.library_name == library


def test_damage_that_training_saw_is_said(tmp_path: Path) -> None:
    assert "- KL 0.0123 nats per token" in card(tmp_path, learned={"damage": 0.012345})
    assert "Not measured" in card(tmp_path, learned=None)


def test_a_path_is_no_hub_id(tmp_path: Path) -> None:
    assert ModelCard(card(tmp_path, base=str(tmp_path))).data.base_model is None


def test_a_card_that_is_no_text_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00")
    write_damage(tmp_path, ["PASS"])
    assert (tmp_path / "README.md").read_bytes() == b"\xff\xfe\x00"


def test_damage_is_added_and_replaced(tmp_path: Path) -> None:
    before = card(tmp_path)
    for lines in (["FAIL: KL 3"], ["PASS: KL 0.1", "PASS: forgetting 0%"]):
        write_damage(tmp_path, lines)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert [line[2:] for line in text.splitlines() if line.startswith("- ") and ": " in line][
            -len(lines) :
        ] == lines
        assert "## How to load it" in text
    assert "Not measured" in before and "Not measured" not in text and "FAIL" not in text
    assert ModelCard(text).data.base_model == "org/model"


def test_without_a_card_nothing_is_written(tmp_path: Path) -> None:
    write_damage(tmp_path, ["PASS"])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_card_whole(tmp_path: Path) -> None:
    before = card(tmp_path)
    with limited(len(before) // 2), pytest.raises(OSError, match="too large"):
        write_damage(tmp_path, ["PASS"])
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "training.json"}
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == before
