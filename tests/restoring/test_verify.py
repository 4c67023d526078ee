"""Verifying finds every difference outside the selected rows, and none inside them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from loki.errors import CheckFailed, LokiError
from loki.restoring import same_outputs
from loki.restoring.verify import _compare, verify
from tests.tiny_models import tiny_model

POSITIONS = [[1, 30], [7], [0, 4, 5]]
DOWN = "model.layers.{}.mlp.down_proj.weight"
Weights = dict[str, torch.Tensor]


def changed(base: Path, folder: Path, change: Callable[[Weights], None]) -> Path:
    tuned = Path(shutil.copytree(base, folder / "tuned"))
    weights = load_file(tuned / "model.safetensors")
    change(weights)
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    return tuned


def test_selected_rows_may_differ(llama_dir: Path, tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights[DOWN.format(0)][[1, 30]] += 1
        weights[DOWN.format(2)][4, 0] += 1

    report = verify(llama_dir, changed(llama_dir, tmp_path, change), POSITIONS)
    assert report.differences == []
    assert (report.changed_rows, report.selected_rows) == (3, 6)
    report.raise_for_differences()


def test_other_rows_may_not(llama_dir: Path, tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights[DOWN.format(1)][[7, 8, 9]] += 0.5

    report = verify(llama_dir, changed(llama_dir, tmp_path, change), POSITIONS)
    assert [difference.tensor for difference in report.differences] == [DOWN.format(1)]
    assert "2 of 32 rows differ (8, 9) by up to 0.5" in str(report.differences[0])
    with pytest.raises(CheckFailed, match="1 differences outside"):
        report.raise_for_differences()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights["model.norm.weight"].add_(1), "32 of 32 rows differ"),
        (lambda weights: weights.pop("model.norm.weight"), "missing in the tuned model"),
        (lambda weights: weights.update(extra=torch.ones(2)), "missing in the base model"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(31)}), "shape [32] became [31]"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(32).half()}), "type torch.float32 became"),
        (lambda weights: weights["model.norm.weight"].fill_(float("nan")), "rows differ"),
    ],
)
def test_every_kind_of_difference(
    llama_dir: Path, tmp_path: Path, change: Callable[[Weights], None], reason: str
) -> None:
    report = verify(llama_dir, changed(llama_dir, tmp_path, change), POSITIONS)
    assert len(report.differences) == 1
    assert reason in str(report.differences[0])


def test_shards_do_not_matter(llama_dir: Path, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    for before, after in ((llama_dir, tmp_path / "sharded"), (tmp_path / "sharded", llama_dir)):
        assert verify(before, after, POSITIONS).differences == []


def test_a_tied_output_embedding_may_be_stored_in_one_model_only(tmp_path: Path) -> None:
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path / "base")

    def change(weights: Weights) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    stored = changed(tmp_path / "base", tmp_path, change)
    for before, after in ((tmp_path / "base", stored), (stored, tmp_path / "base")):
        assert verify(before, after, POSITIONS).differences == []


def test_an_output_embedding_that_differs_from_the_one_it_is_tied_to(tmp_path: Path) -> None:
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    added = changed(
        tmp_path / "base", tmp_path, lambda weights: weights.update({"lm_head.weight": torch.ones(320, 32)})
    )
    assert "tied to" in str(verify(tmp_path / "base", added, POSITIONS).differences)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rms_norm_eps", 0.1),
        ("hidden_act", "gelu"),
        ("num_attention_heads", 2),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5.0}),
        ("tie_word_embeddings", True),
        ("dtype", "bfloat16"),
        ("model_type", "mistral"),
    ],
)
def test_what_the_configuration_changes(llama_dir: Path, tmp_path: Path, field: str, value: object) -> None:
    tuned = changed(llama_dir, tmp_path, lambda weights: weights[DOWN.format(0)][1].add_(1))
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, field: value}))
    report = verify(llama_dir, tuned, POSITIONS)
    assert any(field in difference.tensor for difference in report.differences)


def test_what_the_configuration_says_of_files_does_not_matter(llama_dir: Path, tmp_path: Path) -> None:
    tuned = changed(llama_dir, tmp_path, lambda weights: None)
    config = json.loads((tuned / "config.json").read_text())
    config |= {"transformers_version": "5.0.0", "use_cache": False, "pad_token_id": 0}
    (tuned / "config.json").write_text(json.dumps(config))
    report = verify(llama_dir, tuned, POSITIONS)
    assert (report.differences, report.prompts) == ([], 3)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_selected_rows_must_be_numbers(llama_dir: Path, tmp_path: Path, number: float) -> None:
    tuned = changed(llama_dir, tmp_path, lambda weights: weights[DOWN.format(0)][1].fill_(number))
    assert "1 selected rows are NaN or infinite (1)" in str(verify(llama_dir, tuned, POSITIONS).differences[0])


def test_a_single_file_that_hides_other_shards(llama_dir: Path, tmp_path: Path) -> None:
    tuned = Path(shutil.copytree(llama_dir, tmp_path / "tuned"))
    tiny_model(seed=1).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    for file in (tmp_path / "sharded").glob("model*"):
        shutil.copy(file, tuned)
    differences = verify(llama_dir, tuned, POSITIONS).differences
    assert [difference.tensor for difference in differences] == [str(tuned / "model.safetensors")]
    tiny_model().save_pretrained(tmp_path / "same", max_shard_size="20KB")
    for file in (tmp_path / "same").glob("model*"):
        shutil.copy(file, tuned)
    assert verify(llama_dir, tuned, POSITIONS).differences == []


def test_tensors_without_elements() -> None:
    assert _compare(torch.zeros(0, 3), torch.zeros(0, 3), None, []) == ([], "")
    assert _compare(torch.zeros(3, 0), torch.zeros(3, 0), None, [1]) == ([], "")
    assert "shape [0, 3] became [3, 0]" in _compare(torch.zeros(0, 3), torch.zeros(3, 0), None, [])[1]


def test_what_is_computed_otherwise_shows_in_the_logits(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever tensors and configuration do not show: here, a field that is held to be without effect."""
    monkeypatch.setattr(same_outputs, "_WITHOUT_EFFECT", same_outputs._WITHOUT_EFFECT | {"rms_norm_eps"})
    tuned = changed(llama_dir, tmp_path, lambda weights: weights[DOWN.format(0)][1].add_(1))
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert [str(difference) for difference in verify(llama_dir, tuned, POSITIONS).differences] == [
        f"logits of prompt {number}: differ although the selected rows are those of the base" for number in range(3)
    ]


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_counts_rows(data: st.DataObject) -> None:
    rows = st.lists(st.integers(0, 9), unique=True)
    touched, allowed = data.draw(rows), data.draw(rows)
    before = torch.zeros(10, 3)
    after = before.clone()
    after[touched] += 1
    changed, reason = _compare(before, after, None, allowed)
    assert set(changed) == set(touched) & set(allowed)
    assert bool(reason) == bool(set(touched) - set(allowed))


def test_positions_for_another_model(llama_dir: Path) -> None:
    with pytest.raises(LokiError, match="made for 1 layers"):
        verify(llama_dir, llama_dir, [[0]])
