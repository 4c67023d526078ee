import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from peft.utils import save_and_load
from safetensors.torch import load_file
from torch import nn

from loki.errors import LokiError
from loki.implanting.peft import LoKIConfig
from loki.implanting.peft.layer import RowAdapter
from loki.models.experts import down_projections
from tests.implanting.peft.adapters import D_FF, POSITIONS, RANKS, adapted_model, logits, random_deltas, save_adapter
from tests.tiny_models import FAMILIES, tiny_model
from tests.tolerances import assert_close

VALUES = {None: 5 * D_FF, 2: 2 * (2 * D_FF) + 2 * 5}  # 5 rows in 2 of the 3 layers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", RANKS)
def test_every_family_starts_unchanged_with_only_the_selected_rows_trainable(family, rank):
    model = tiny_model(family)
    expected = logits(model)
    peft_model = get_peft_model(model, LoKIConfig(positions=POSITIONS, rank=rank))
    assert torch.equal(logits(peft_model), expected)
    assert peft_model.get_nb_trainable_parameters()[0] == VALUES[rank]
    trainable = [name for name, parameter in peft_model.named_parameters() if parameter.requires_grad]
    assert all(".loki_" in name for name in trainable)


def test_print_trainable_parameters_counts_the_rows(capsys):
    adapted_model().print_trainable_parameters()
    assert f"trainable params: {VALUES[None]} ||" in capsys.readouterr().out


@pytest.mark.parametrize("rank", RANKS)
def test_the_file_holds_the_selected_rows_and_nothing_else(tmp_path, rank):
    tensors = load_file(save_adapter(tmp_path, rank=rank) / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == VALUES[rank]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_gives_the_same_logits_again(tmp_path, rank, low_cpu_mem_usage):
    model = adapted_model(rank=rank)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.get_nb_trainable_parameters()[0] == 0
    again = PeftModel.from_pretrained(tiny_model(), tmp_path, is_trainable=True)
    assert again.get_nb_trainable_parameters()[0] == VALUES[rank]


def test_the_auto_class_finds_the_base_model(tmp_path, llama_dir):
    model = AutoPeftModelForCausalLM.from_pretrained(save_based_adapter(tmp_path, llama_dir))
    expected = adapted_model()
    assert torch.equal(logits(model), logits(expected))


@pytest.mark.skipif(
    not hasattr(save_and_load, "_maybe_shard_state_dict_for_tp"), reason="transformers 5 needs a newer peft for this"
)
def test_transformers_itself_loads_the_adapter(tmp_path, llama_dir):
    expected = logits(adapted_model())
    model = tiny_model()
    model.load_adapter(str(save_based_adapter(tmp_path, llama_dir)))
    assert torch.equal(logits(model), expected)


def save_based_adapter(directory, base):
    model = adapted_model()
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(directory)
    return directory


def test_disabling_gives_the_base_model_back():
    expected = logits(tiny_model())
    model = adapted_model()
    changed = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), changed)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_the_merged_model_is_a_plain_one_with_only_the_selected_rows_changed(rank, family):
    original = tiny_model(family).state_dict()
    model = adapted_model(tiny_model(family), rank=rank)
    expected = logits(model)
    merged = model.merge_and_unload()
    assert_close(logits(merged), expected)
    assert merged.state_dict().keys() == original.keys()
    assert not any(isinstance(module, RowAdapter) for module in merged.modules())
    changed = {
        name: (tensor != original[name]).any(dim=-1).nonzero().flatten().tolist()
        for name, tensor in merged.state_dict().items()
        if not torch.equal(tensor, original[name])
    }
    names = [f"{name}.weight" for name in down_projections(merged)]
    assert changed == {name: rows for name, rows in zip(names, POSITIONS, strict=True) if rows}


def test_unmerging_restores_every_weight_bit_for_bit():
    model = adapted_model(tiny_model(dtype=torch.bfloat16))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.merge_adapter()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.unmerge_adapter()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_unloading_gives_the_base_model_back():
    expected = logits(tiny_model())
    assert torch.equal(logits(adapted_model().unload()), expected)


def test_adapters_with_different_rows_are_switched_and_deleted():
    alone = {}
    for name, positions in {"default": POSITIONS, "other": [[2], [9], []]}.items():
        alone[name] = logits(adapted_model(positions=positions))
    model = adapted_model()
    model.add_adapter("other", LoKIConfig(positions=[[2], [9], []]))
    random_deltas(model, adapter="other")
    assert torch.equal(logits(model), alone["default"])
    model.set_adapter("other")
    assert torch.equal(logits(model), alone["other"])
    assert model.get_nb_trainable_parameters()[0] == 2 * D_FF
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT announces the new active adapter
        model.delete_adapter("other")
    assert list(model.peft_config) == ["default"]
    assert not any(".other." in name for name in model.state_dict())
    model.set_adapter("default")
    assert torch.equal(logits(model), alone["default"])


def test_two_adapters_active_at_once_add_up():
    model = adapted_model()
    model.add_adapter("other", LoKIConfig(positions=[[3, 2], [9], []]))
    random_deltas(model, seed=1, adapter="other")
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    assert_close(logits(model.merge_and_unload()), both)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    prompts = torch.arange(12).reshape(2, 6)
    gradients = []
    for checkpointing in (False, True):
        model = adapted_model().train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(prompts, labels=prompts).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    plain, checkpointed = gradients
    assert len(plain) == 2
    for name, gradient in plain.items():
        assert gradient.count_nonzero() > 0
        assert torch.equal(checkpointed[name], gradient)


def test_one_configuration_serves_several_models():
    config = LoKIConfig(positions=POSITIONS)
    for seed in (0, 1):
        get_peft_model(tiny_model(seed=seed), config)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[0], [0]], "2 layers.* 3"),
        ([[0], [32], [1]], "layer 1 .*row 32, .*32 rows"),
    ],
)
def test_positions_that_do_not_fit_the_base_are_refused(positions, message):
    with pytest.raises(LokiError, match=message):
        get_peft_model(tiny_model(), LoKIConfig(positions=positions))


def test_an_adapter_for_another_base_is_refused(tmp_path):
    save_adapter(tmp_path)
    with pytest.raises(LokiError, match="made for another base"):
        PeftModel.from_pretrained(tiny_model(seed=1), tmp_path)
    with pytest.raises(LokiError, match="made for another base"):
        PeftModel.from_pretrained(adapted_model().merge_and_unload(), tmp_path)
    with pytest.raises(LokiError, match=r"32 rows .*64"):
        PeftModel.from_pretrained(tiny_model(hidden_size=64), tmp_path)


def test_the_same_base_in_another_precision_is_accepted(tmp_path):
    save_adapter(tmp_path)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        PeftModel.from_pretrained(tiny_model().to(dtype), tmp_path)


def test_target_modules_name_the_projections_of_an_unknown_structure():
    base = tiny_model("opt", ffn_dim=D_FF, word_embed_proj_dim=32)
    for target_modules in (["fc2"], r".*\.fc2", None):
        model = get_peft_model(base, LoKIConfig(positions=POSITIONS, target_modules=target_modules))
        assert model.get_nb_trainable_parameters()[0] == VALUES[None]
        base = model.unload()
    with pytest.raises(LokiError, match=r"target_modules=\['fc3'\]"):
        get_peft_model(base, LoKIConfig(positions=POSITIONS, target_modules=["fc3"]))


def test_a_model_without_linear_projections_is_refused():
    with pytest.raises(LokiError, match="linear projection"):
        get_peft_model(tiny_model("gpt2", n_layer=3, n_embd=32, n_head=4), LoKIConfig(positions=POSITIONS))


def test_a_quantised_projection_trains_but_does_not_merge():
    model = tiny_model()
    for layer in model.model.layers:
        layer.mlp.down_proj = Quantised(layer.mlp.down_proj)
    expected = logits(model)
    adapted = get_peft_model(model, LoKIConfig(positions=POSITIONS))
    assert torch.equal(logits(adapted), expected)
    prompts = torch.arange(12).reshape(2, 6)
    adapted(prompts, labels=prompts).loss.backward()
    gradients = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert len(gradients) == 2
    assert all(gradient.count_nonzero() > 0 for gradient in gradients)
    with pytest.raises(LokiError, match="quantised"):
        adapted.merge_adapter()


class Quantised(nn.Module):
    """A weight in 8 bits with one scale per row, and no nn.Linear."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight * self.scale).T.to(x.dtype)
