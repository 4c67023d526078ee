"""An adapter on rows of every expert: beside the base with the rows changed in its own tensors, expert by expert."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.implanting.peft import LoKIConfig
from loki.implanting.peft import experts as adapted_experts
from loki.implanting.peft.adapter_files import read_adapter
from loki.implanting.peft.experts import ExpertsAdapter
from loki.implanting.peft.export import export_lora
from loki.implanting.peft.layer import RowAdapter
from loki.implanting.peft.merge import merge_adapters
from loki.implanting.peft.zero import save_zero_adapter
from loki.models.experts import layer_rows
from loki.models.loading import load_model
from loki.restoring.restore import restore_loki_model
from loki.restoring.verify import verify
from tests.implanting.peft.adapters import random_deltas
from tests.tiny_models import save_tiny_model, tiny_model
from tests.tolerances import assert_close

POSITIONS = [[1, 30], [], [0, 4, 5]]
OTHERS = [[2], [9], [1, 31]]
# Square in GPT-OSS, where no shape tells which dimension the rows lie along; DeepSeek begins with a dense layer.
CHANGES: dict[str, dict[str, Any]] = {
    "gpt_oss": {"intermediate_size": 32},
    "qwen3_moe": {},
    "deepseek_v3": {},
    "mixtral": {},
    "llama4_text": {},
}
IDS = torch.tensor([[5, 9, 40, 77, 123, 8, 200, 3]])


def base_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return tiny_model(family, dtype=dtype, **CHANGES[family])


def adapted(family: str, rank: int | None = None, dtype: torch.dtype = torch.float32, seed: int = 0) -> PeftModel:
    model = get_peft_model(base_model(family, dtype), LoKIConfig(positions=POSITIONS, rank=rank, experts="all"))
    random_deltas(model, seed)
    return model.eval()


def deltas_of(model: PeftModel) -> dict[str, torch.Tensor]:
    """What is added to whole weights, by name in the base; written out expert by expert, and row by row."""
    found = {}
    for name, module in model.base_model.model.named_modules():
        if not isinstance(module, RowAdapter):
            continue
        rows = module.loki_rows["default"].tolist()
        weights = {
            kind: layers["default"].weight
            for kind in ("delta", "A", "B")
            if (layers := getattr(module, f"loki_{kind}"))
        }
        if not isinstance(module, ExpertsAdapter):
            change = torch.zeros_like(module.base_layer.weight, dtype=torch.float32)
            change[rows] = weights["delta"] if "delta" in weights else weights["B"] @ weights["A"]
            found[f"{name}.weight"] = change
            continue
        held = module.base_layer.down_proj
        change = torch.zeros_like(held, dtype=torch.float32)
        for expert in range(len(held)):
            for place, row in enumerate(rows):
                if "delta" in weights:
                    value = weights["delta"][expert * len(rows) + place]
                else:
                    rank = weights["B"].shape[1]
                    value = weights["B"][expert * len(rows) + place] @ weights["A"][expert * rank : (expert + 1) * rank]
                if (
                    getattr(module.base_layer, "is_transposed", False)
                    or type(module.base_layer).__name__ == "Llama4TextExperts"
                ):
                    change[expert, :, row] = value
                else:
                    change[expert, row] = value
        found[f"{name}.down_proj"] = change
    return found


def with_changes(model: PreTrainedModel, changes: dict[str, torch.Tensor]) -> PreTrainedModel:
    with torch.no_grad():
        for name, change in changes.items():
            held = model.get_parameter(name)
            held.copy_((held.float() + change).to(held.dtype))
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found.detach()


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("family", CHANGES)
def test_outputs_and_gradients_beside_whole_weights(family: str, rank: int | None) -> None:
    original = base_model(family)
    fresh = get_peft_model(base_model(family), LoKIConfig(positions=POSITIONS, rank=rank, experts="all"))
    expected = logits(original)
    assert torch.equal(logits(fresh), expected)
    experts = [rows.experts for rows in layer_rows(original, "all")]
    assert sum(isinstance(module, ExpertsAdapter) for module in fresh.modules()) == sum(
        bool(one and rows) for one, rows in zip(experts, POSITIONS, strict=True)
    )
    assert all(".loki_" in name for name, part in fresh.named_parameters() if part.requires_grad)

    model = adapted(family, rank)
    changes = deltas_of(model)
    reference = with_changes(base_model(family), {name: change.detach() for name, change in changes.items()})
    output = model(input_ids=IDS, labels=IDS)
    with torch.no_grad():
        assert torch.equal(logits(model), output.logits), "rows put in for a moment, and a copy"
    assert_close(output.logits.detach(), reference(input_ids=IDS).logits.detach())
    assert not torch.equal(output.logits, expected)
    output.loss.backward()
    reference(input_ids=IDS, labels=IDS).loss.backward()
    # The chain rule through what is added to the whole weights.
    trained = {name: part for name, part in model.named_parameters() if part.requires_grad}
    gradients = {name: reference.get_parameter(name).grad for name in changes}
    wanted = torch.autograd.grad(
        [deltas_of(model)[name] for name in changes], list(trained.values()), [gradients[name] for name in changes]
    )
    for (name, part), gradient in zip(trained.items(), wanted, strict=True):
        assert part.grad is not None and part.grad.any(), name
        assert_close(part.grad, gradient)


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("rank", [None, 2])
def test_merging_is_exact_and_undone_to_the_last_bit(family: str, rank: int | None) -> None:
    model = adapted(family, rank, torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in base_model(family, torch.bfloat16).state_dict().items()}
    expected = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base_model(family, torch.bfloat16)))
    model.merge_adapter()
    changed = [name for name, module in model.named_modules() if isinstance(module, ExpertsAdapter) and module.merged]
    assert changed
    model.unmerge_adapter()
    held = {name.replace(".base_layer.", "."): tensor for name, tensor in model.base_model.model.state_dict().items()}
    assert all(torch.equal(held[name], tensor) for name, tensor in before.items())
    wanted = with_changes(base_model(family, torch.bfloat16), {n: c.detach() for n, c in deltas_of(model).items()})
    merged = model.merge_and_unload()
    assert merged.state_dict().keys() == before.keys()
    assert all(torch.equal(merged.state_dict()[name], tensor) for name, tensor in wanted.state_dict().items())
    if family == "gpt_oss":  # no projection beside the experts, whose delta a `RowAdapter` adds to the output
        assert torch.equal(logits(merged), expected)


def test_rows_are_taken_out_again_after_an_error_and_beside_another_thread() -> None:
    model = adapted("mixtral")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = logits(model)
    results: list[bool] = []

    def compute() -> None:
        with torch.no_grad():
            results.extend(torch.equal(logits(model), expected) for _ in range(5))

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 15
    module = next(part for part in model.modules() if isinstance(part, ExpertsAdapter))
    with torch.no_grad(), pytest.raises(TypeError):
        module()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["gpt_oss", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_saved_loaded_restored_and_verified(family: str, tmp_path: Path) -> None:
    """Experts stored together, transposed (GPT-OSS), and one by one (Qwen3-MoE)."""
    base = save_tiny_model(tmp_path / "base", family, dtype=torch.bfloat16, **CHANGES[family])
    zero = save_zero_adapter(base, POSITIONS, tmp_path / "zero", experts="all")
    assert zero.base_fingerprint is not None
    model = PeftModel.from_pretrained(load_model(base), str(tmp_path / "zero"), is_trainable=True)
    assert model.peft_config["default"].found_values == zero.base_values
    random_deltas(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    saved = read_adapter(tmp_path / "adapter")
    assert [[(delta.module, delta.experts) for delta in layer] for layer in saved.layers] == [
        [(f"model.layers.{layer}.mlp.experts", 4)] if rows else [] for layer, rows in enumerate(POSITIONS)
    ]
    again = PeftModel.from_pretrained(load_model(base), str(tmp_path / "adapter"))
    assert torch.equal(logits(again), logits(model))
    restored = restore_loki_model(tmp_path / "adapter", tmp_path / "restored", base_model=base)
    merged = again.merge_and_unload().state_dict()
    assert all(torch.equal(part, merged[name]) for name, part in load_model(restored).state_dict().items())
    report = verify(base, restored, POSITIONS, experts="all")
    assert (report.changed_rows, report.differences) == (5, [])

    half = load_model(restore_loki_model(tmp_path / "adapter", tmp_path / "half", scale=0.5))
    wanted = with_changes(load_model(base), {name: 0.5 * change.detach() for name, change in deltas_of(model).items()})
    assert all(torch.equal(part, half.state_dict()[name]) for name, part in wanted.state_dict().items())


def test_another_base_is_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "qwen3_moe")
    save_zero_adapter(base, POSITIONS, tmp_path / "zero", experts="all")
    model = load_model(base)
    with torch.no_grad():
        model.get_parameter("model.layers.2.mlp.experts.down_proj")[3, 4, 0] += 1  # of one row of one expert
    with pytest.raises(LokiError, match="another base"):
        PeftModel.from_pretrained(model, str(tmp_path / "zero"))
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(LokiError, match="another base"):
        restore_loki_model(
            tmp_path / "zero", tmp_path / "restored", base_model=tmp_path / "other", allow_unchanged=True
        )
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("ranks", [(None, None), (2, 3), (2, None)])
def test_disjoint_adapters_are_merged_and_added_up(ranks: tuple[int | None, int | None], tmp_path: Path) -> None:
    for name, rank, positions in (("default", ranks[0], POSITIONS), ("other", ranks[1], OTHERS)):
        alone = get_peft_model(base_model("deepseek_v3"), LoKIConfig(positions=positions, rank=rank, experts="all"))
        random_deltas(alone, seed=len(name))
        alone.save_pretrained(str(tmp_path / name))
    model = PeftModel.from_pretrained(base_model("deepseek_v3"), str(tmp_path / "default"))
    model.load_adapter(str(tmp_path / "other"), "other")
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    merge_adapters([tmp_path / "default", tmp_path / "other"], tmp_path / "both")
    assert_close(logits(PeftModel.from_pretrained(base_model("deepseek_v3"), str(tmp_path / "both"))), both)
    model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    model.set_adapter("sum")
    assert_close(logits(model), both)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LokiError, match="protect"):
        LoKIConfig(positions=POSITIONS, experts="all", protect=0.5, moments="moments.safetensors")
    adapted("qwen3_moe", 2).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(LokiError, match="loki restore"):
        export_lora(tmp_path / "adapter", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    quantised = base_model("mixtral")
    for module in quantised.modules():
        if "down_proj" in module._parameters:
            held = module.get_parameter("down_proj").data
            module._parameters["down_proj"] = torch.nn.Parameter(held.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(LokiError, match="float8"):
        get_peft_model(quantised, LoKIConfig(positions=POSITIONS, experts="all"))
    monkeypatch.setattr(adapted_experts, "under_fsdp", lambda: True)
    with pytest.raises(LokiError, match="FSDP"):
        adapted("qwen3_moe")
