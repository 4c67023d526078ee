from itertools import permutations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from loki.errors import LokiError
from loki.implanting.peft import LoKIConfig
from loki.implanting.peft.adapter_files import read_adapter
from loki.implanting.peft.merge import merge_adapters
from tests.implanting.peft.adapters import POSITIONS, adapted_model, logits, save_adapter
from tests.tiny_models import tiny_model
from tests.tolerances import assert_close

OTHER = [[2, 30], [9], []]


@st.composite
def disjoint_adapters(draw):
    """Positions of 2 or 3 adapters (3 layers of 32 rows) that share no row, and a rank for each."""
    count = draw(st.integers(2, 3))
    owner = st.sampled_from(range(count + 3))  # an owner beyond the adapters leaves the row alone
    owners = [[draw(owner) for _ in range(32)] for _ in range(3)]
    adapters = [[[row for row in range(32) if layer[row] == index] for layer in owners] for index in range(count)]
    if not all(any(positions) for positions in adapters):
        adapters = [[[index], [], []] for index in range(count)]
    return [(positions, draw(st.sampled_from([None, 1, 2]))) for positions in adapters]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(disjoint_adapters())
def test_merging_is_exact_and_the_same_in_any_order(tmp_path_factory, adapters):
    folder = tmp_path_factory.mktemp("merge")
    paths = []
    expected = [torch.zeros(32, 48) for _ in range(3)]
    for index, (positions, rank) in enumerate(adapters):
        paths.append(save_adapter(folder / str(index), positions, rank, seed=index))
        for weight, layer in zip(expected, read_adapter(paths[-1]).layers, strict=True):
            for delta in layer:
                weight[delta.rows] = delta.matrix
    files = set()
    for order, shuffled in enumerate(permutations(paths)):
        merge_adapters(list(shuffled), folder / f"merged{order}")
        files.add(
            tuple(
                (folder / f"merged{order}" / name).read_bytes()
                for name in ("adapter_config.json", "adapter_model.safetensors")
            )
        )
    assert len(files) == 1
    merged = read_adapter(folder / "merged0")
    full_rows = any(rank is None for _, rank in adapters)
    assert merged.config.rank == (None if full_rows else sum(rank for _, rank in adapters))
    for weight, deltas in zip(expected, merged.layers, strict=True):
        layer = deltas[0] if deltas else None
        rows = [] if layer is None else layer.rows
        assert weight.any(dim=1).nonzero().flatten().tolist() == rows
        if layer is not None and full_rows:
            assert torch.equal(layer.matrix, weight[rows])
        elif layer is not None:
            assert_close(layer.matrix, weight[rows])


def test_the_merged_adapter_acts_like_both_and_knows_its_base(tmp_path):
    first, second = save_adapter(tmp_path / "1", rank=2), save_adapter(tmp_path / "2", OTHER, seed=1)
    merge_adapters([first, second], tmp_path / "both")
    model = PeftModel.from_pretrained(tiny_model(), tmp_path / "both")
    separate = PeftModel.from_pretrained(tiny_model(), first)
    separate.load_adapter(second, "second")
    separate.base_model.set_adapter(["default", "second"])
    assert_close(logits(model), logits(separate))
    with pytest.raises(LokiError, match="made for another base"):
        PeftModel.from_pretrained(tiny_model(seed=1), tmp_path / "both")


def test_a_model_is_implanted_task_after_task(tmp_path):
    """The second adapter is trained on a base into which the first was merged; both together fit the first base."""
    first = save_adapter(tmp_path / "1")
    after_first = PeftModel.from_pretrained(tiny_model(), first).merge_and_unload()
    second = adapted_model(after_first, OTHER, seed=1)
    second.save_pretrained(tmp_path / "2")
    merge_adapters([first, tmp_path / "2"], tmp_path / "both")
    assert_close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "both")), logits(second))


def test_shared_rows_are_refused_with_the_row_named(tmp_path):
    first, second = save_adapter(tmp_path / "1"), save_adapter(tmp_path / "2", [[2], [], [7, 31]])
    with pytest.raises(LokiError, match=r"row 7 of layer 2 \(2 .*--exclude"):
        merge_adapters([first, second], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_adapters_of_other_models_are_refused(tmp_path):
    first = save_adapter(tmp_path / "1")
    for index, changes in enumerate([{"num_hidden_layers": 4}, {"hidden_size": 64}, {"intermediate_size": 40}]):
        base = tiny_model(**changes)
        model = get_peft_model(base, LoKIConfig(positions=[[2]] * base.config.num_hidden_layers))
        model.save_pretrained(tmp_path / f"other{index}")
        with pytest.raises(LokiError, match="one base model"):
            merge_adapters([first, tmp_path / f"other{index}"], tmp_path / "both")


def test_one_adapter_is_not_enough(tmp_path):
    with pytest.raises(LokiError, match="at least two"):
        merge_adapters([save_adapter(tmp_path / "1", POSITIONS)], tmp_path / "both")


def test_ranks_of_disjoint_adapters_are_kept_apart(tmp_path):
    paths = [save_adapter(tmp_path / "1", rank=2), save_adapter(tmp_path / "2", OTHER, rank=1, seed=1)]
    config = merge_adapters(paths, tmp_path / "both")
    tensors = load_file(tmp_path / "both" / "adapter_model.safetensors")
    assert config.rank == 3
    assert tensors["base_model.model.model.layers.0.mlp.down_proj.loki_B.weight"].shape == (4, 3)
