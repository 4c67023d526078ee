"""Adapters that train along the least used input directions: `dW_S = C U^T`, `U` fixed."""

import json
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from loki.errors import LokiError
from loki.implanting.peft import LoKIConfig
from loki.implanting.peft.adapter_files import read_adapter
from loki.implanting.peft.export import export_lora
from loki.implanting.peft.layer import RowAdapter
from loki.implanting.peft.merge import merge_adapters
from loki.implanting.peft.zero import save_zero_adapter
from loki.models.loading import load_model
from loki.restoring.restore import restore_loki_model
from tests.implanting.peft.adapters import POSITIONS, logits
from tests.implanting.test_protected_model import some_moments
from tests.programs import run_python
from tests.tiny_models import tiny_model
from tests.tolerances import assert_close


@pytest.fixture
def moments(llama_dir: Path, tmp_path: Path) -> Path:
    return some_moments(tmp_path / "moments.safetensors", llama_dir)


def protected_model(moments: Path, positions: list[list[int]] = POSITIONS, **options: object) -> PeftModel:
    model = get_peft_model(tiny_model(**options), LoKIConfig(positions=positions, protect=0.75, moments=moments))
    assert torch.equal(logits(model), logits(tiny_model(**options)))
    generator = torch.Generator().manual_seed(1)
    for parameter in trained(model):
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model.eval()


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adapters(model: torch.nn.Module) -> list[RowAdapter]:
    return [module for module in model.modules() if isinstance(module, RowAdapter)]


@pytest.mark.parametrize("tokens", [2, 40])  # few are projected, for many C U^T is multiplied out
def test_the_protected_span_is_left_alone(moments: Path, tokens: int) -> None:
    model = protected_model(moments, dtype=torch.float64)
    assert [parameter.shape for parameter in trained(model)] == [(2, 12), (3, 12)]
    for module in adapters(model):
        directions = module.loki_U["default"].weight[0].double()
        x = torch.randn(tokens, 48, dtype=torch.float64)
        span = torch.linalg.qr(directions).Q
        protected = x - x @ span @ span.T
        assert_close(module(protected), module.base_layer(protected))
        rows = module.loki_rows["default"]
        expected = module.base_layer(x).index_add(
            -1, rows, x @ directions @ module.loki_C["default"].weight.detach().double().T
        )
        assert_close(module(x), expected)
        assert (module(x) - module.base_layer(x))[:, rows].abs().max() > 1e-2


def test_save_load_merge_unmerge(moments: Path, tmp_path: Path) -> None:
    model = protected_model(moments)
    before = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    moments.unlink()  # needed no more
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    assert torch.equal(logits(loaded), before)
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter", is_trainable=True)
    assert [parameter.shape for parameter in trained(again)] == [(2, 12), (3, 12)]
    originals = [module.base_layer.weight.clone() for module in adapters(model)]
    model.merge_adapter()
    assert_close(logits(model), before)
    model.unmerge_adapter()
    assert all(
        torch.equal(module.base_layer.weight, weight) for module, weight in zip(adapters(model), originals, strict=True)
    )
    assert torch.equal(logits(model), before)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_model()))


def test_only_the_coefficients_move_in_training(moments: Path) -> None:
    model = protected_model(moments)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(trained(model), lr=0.1)
    model(torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.rsplit(".", 3)[1] for name in changed} == {"loki_C"}
    assert len(changed) == 2


def test_restore_export_merge_and_combine_multiply_out(llama_dir: Path, moments: Path, tmp_path: Path) -> None:
    model = protected_model(moments)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    restore_loki_model(tmp_path / "adapter", tmp_path / "restored", base_model=llama_dir)
    export_lora(tmp_path / "adapter", tmp_path / "lora", full_rows=True)
    assert_close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "lora")), expected)
    other = protected_model(moments, [[0], [4], []])
    other.save_pretrained(tmp_path / "other")
    merge_adapters([tmp_path / "adapter", tmp_path / "other"], tmp_path / "both")
    both = read_adapter(tmp_path / "both")
    assert both.config.protect is None
    assert_close(both.adapted[0].matrix[[1, 2]], read_adapter(tmp_path / "adapter").adapted[0].matrix)
    model.add_weighted_adapter(["default"], [1.0], "same")
    model.set_adapter("same")
    assert_close(logits(model), expected)


def test_a_zero_adapter(llama_dir: Path, moments: Path, tmp_path: Path) -> None:
    save_zero_adapter(llama_dir, POSITIONS, tmp_path / "zero", moments=moments, protect=0.75)
    model = PeftModel.from_pretrained(tiny_model(), tmp_path / "zero", is_trainable=True)
    assert torch.equal(logits(model), logits(tiny_model()))
    reference = protected_model(moments)
    for module, other in zip(adapters(model), adapters(reference), strict=True):
        assert torch.equal(module.loki_U["default"].weight, other.loki_U["default"].weight)


def test_other_directions_are_refused(moments: Path, tmp_path: Path) -> None:
    protected_model(moments).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "loki_U" in name)
    save_file({**tensors, name: tensors[name].flip(1)}, file, metadata={"format": "pt"})
    with pytest.raises(LokiError, match="other input directions"):
        PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    with pytest.raises(LokiError, match="other input directions"):
        read_adapter(tmp_path / "adapter")
    with pytest.raises(LokiError, match="needs moments"):
        get_peft_model(tiny_model(), LoKIConfig(positions=POSITIONS, protect=0.5))


def test_hashes_of_the_directions_may_be_missing(llama_dir: Path, moments: Path, tmp_path: Path) -> None:
    """Other programs that save adapters of this form write none."""
    model = protected_model(moments)
    model.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    fields = json.loads(config.read_text())
    assert fields.pop("directions_digests")
    config.write_text(json.dumps(fields))
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")), logits(model))
    restore_loki_model(tmp_path / "adapter", tmp_path / "restored", base_model=llama_dir)
    assert_close(logits(load_model(tmp_path / "restored")), logits(model))


@pytest.mark.slow
def test_a_fresh_process_loads_it(llama_dir: Path, moments: Path, tmp_path: Path) -> None:
    model = protected_model(moments)
    model.save_pretrained(tmp_path / "adapter")
    code = f"""
        import loki, torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
        torch.set_num_threads(1)
        base = AutoModelForCausalLM.from_pretrained({str(llama_dir)!r})
        model = PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r})
        torch.save(model(torch.arange(9)[None]).logits, {str(tmp_path / "logits.pt")!r})
    """
    run_python("-c", dedent(code))
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), model(torch.arange(9)[None]).logits)
