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

# What is special about LoKI. The matrices of PEFT's common tests get the entries in matrices.py.

import copy

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from peft import LokiConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.loki import LokiLayer, measure_second_moments


HIDDEN, WIDTH, LAYERS = 16, 24, 3
POSITIONS = [[1, 5, 9], [], [0, 15]]
IDS = torch.arange(2, 22).view(2, 10)

FORMS = {
    "full": {"positions": POSITIONS},
    "rank": {"positions": POSITIONS, "rank": 2},
    "protect": {"positions": POSITIONS, "protect": 0.5},
    "quota": {"quota": 25, "seed": 3},
}


def make_model(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


@pytest.fixture(scope="module")
def moments(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("loki") / "moments.safetensors")
    assert measure_second_moments(make_model(), ["down_proj"], [{"input_ids": IDS}], path) == IDS.numel()
    return path


@pytest.fixture(params=FORMS)
def config(request, moments) -> LokiConfig:
    more = {"moments": moments} if request.param == "protect" else {}
    return LokiConfig(**FORMS[request.param], **more, init_weights=False, task_type="CAUSAL_LM")


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def selected(config: LokiConfig) -> dict[str, list[int]]:
    return {f"model.layers.{layer}.mlp.down_proj.weight": rows for layer, rows in enumerate(config.positions) if rows}


class TestLoki:
    def test_untrained_adapter_is_identity(self, config):
        config.init_weights = True
        base = make_model()
        expected = base(IDS).logits
        model = get_peft_model(base, config).eval()
        assert torch.equal(model(IDS).logits, expected)

    def test_only_the_adapter_is_trainable_and_it_is_as_large_as_said(self, config):
        model = get_peft_model(make_model(), config)
        trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        assert all("loki_" in name and "loki_U" not in name for name in trainable)
        rows = [len(rows) for rows in config.positions if rows]
        if config.rank is not None:
            expected = sum(config.rank * (k + WIDTH) for k in rows)
        elif config.protect is not None:
            expected = sum(k * (WIDTH - round(config.protect * WIDTH)) for k in rows)
        else:
            expected = sum(k * WIDTH for k in rows)
        assert sum(trainable.values()) == expected

    def test_merging_writes_the_selected_rows_alone(self, config):
        before = weights(make_model())
        model = get_peft_model(make_model(), config).eval()
        expected = model(IDS).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-5)
        after = weights(merged)
        assert after.keys() == before.keys()
        for name, rows in selected(config).items():
            changed = (before.pop(name) != after.pop(name)).any(dim=1).nonzero().flatten().tolist()
            assert changed == rows
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_unmerging_restores_every_bit(self, config, dtype):
        model = get_peft_model(make_model(dtype), config).eval()
        before, output = weights(model), model(IDS).logits
        model.merge_adapter(safe_merge=True)
        assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
        model.unmerge_adapter()
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
        assert torch.equal(model(IDS).logits, output)

    def test_safe_merge_refuses_nan_and_changes_nothing(self):
        model = get_peft_model(make_model(), LokiConfig(positions=POSITIONS, init_weights=False))
        layer = next(module for module in model.modules() if isinstance(module, LokiLayer))
        layer.loki_delta["default"].weight.data[0, 0] = torch.nan
        before = layer.base_layer.weight.clone()
        with pytest.raises(ValueError, match="NaNs"):
            layer.merge(safe_merge=True)
        assert torch.equal(layer.base_layer.weight, before)

    def test_saved_and_loaded(self, config, tmp_path):
        model = get_peft_model(make_model(), config).eval()
        expected = model(IDS).logits
        model.save_pretrained(tmp_path)
        loaded_config = PeftConfig.from_pretrained(tmp_path)
        assert type(loaded_config) is LokiConfig
        assert loaded_config.peft_type == PeftType.LOKI
        assert loaded_config.positions == config.positions
        assert loaded_config.quota is None
        with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
            assert all("loki_" in name for name in file.keys())
        loaded = PeftModel.from_pretrained(make_model(), tmp_path).eval()
        assert torch.equal(loaded(IDS).logits, expected)

    def test_gradients_are_those_of_the_rows(self):
        reference, before = make_model(), make_model()
        reference(IDS, labels=IDS).loss.backward()
        model = get_peft_model(before, LokiConfig(positions=POSITIONS)).eval()
        model(IDS, labels=IDS).loss.backward()
        for number, rows in enumerate(POSITIONS):
            if rows:
                layer = model.base_model.model.model.layers[number].mlp.down_proj
                expected = reference.model.layers[number].mlp.down_proj.weight.grad[rows]
                torch.testing.assert_close(layer.loki_delta["default"].weight.grad, expected)

    def test_directions_are_the_least_used(self, moments):
        model = get_peft_model(make_model(), LokiConfig(positions=POSITIONS, protect=0.5, moments=moments))
        layer = model.base_model.model.model.layers[0].mlp.down_proj
        directions = layer.loki_U["default"].weight[0].double()
        with safe_open(moments, framework="pt") as file:
            moment = file.get_tensor("second_moment.0")[0].double()
        torch.testing.assert_close(directions.T @ directions, torch.eye(WIDTH // 2).double(), rtol=0, atol=1e-5)
        used = torch.trace(directions.T @ moment @ directions)
        assert used <= torch.linalg.eigvalsh(moment)[: WIDTH // 2].sum() + 1e-6
        assert used < 0.1 * torch.trace(moment)

    def test_two_adapters(self):
        model = get_peft_model(make_model(), LokiConfig(positions=POSITIONS, init_weights=False)).eval()
        first = model(IDS).logits
        model.add_adapter("other", LokiConfig(positions=[[2], [3], [4]], rank=1, init_weights=False))
        assert torch.equal(model(IDS).logits, first)
        model.set_adapter("other")
        other = model(IDS).logits
        assert not torch.allclose(other, first)
        with model.disable_adapter():
            assert torch.equal(model(IDS).logits, make_model()(IDS).logits)
        model.delete_adapter("other")
        model.set_adapter("default")
        assert torch.equal(model(IDS).logits, first)

    def test_delta_weight_is_zero_elsewhere(self, config):
        model = get_peft_model(make_model(), config)
        for number, rows in enumerate(config.positions):
            if rows:
                delta = model.base_model.model.model.layers[number].mlp.down_proj.get_delta_weight("default")
                assert delta.any(dim=1).nonzero().flatten().tolist() == rows

    def test_the_same_draw_for_the_same_seed(self):
        drawn = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed + 10)
            one = LokiConfig(quota=25, seed=seed)
            get_peft_model(make_model(), one)
            drawn.append(copy.deepcopy(one.positions))
        assert drawn[0] == drawn[1] != drawn[2]
        assert [len(rows) for rows in drawn[0]] == [4, 4, 4]

    @pytest.mark.parametrize(("arguments", "count"), [({}, HIDDEN // 10), ({"quota": 1}, 1), ({"quota": 100}, HIDDEN)])
    def test_a_tenth_of_the_rows_is_drawn_by_default_and_at_least_one(self, arguments, count):
        config = LokiConfig(**arguments)
        get_peft_model(make_model(), config)
        assert [len(rows) for rows in config.positions] == [count] * LAYERS

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"positions": [[1]], "quota": 10}, "exclude"),
            ({"positions": [[1, 1]]}, "twice"),
            ({"positions": [[-1]]}, "row indices"),
            ({"positions": [[True]]}, "row indices"),
            ({"quota": 0}, "percentage"),
            ({"quota": 101}, "percentage"),
            ({"positions": [[1]], "rank": 0}, "rank"),
            ({"positions": [[1]], "protect": 1.0}, "share"),
            ({"positions": [[1]], "protect": 0.5, "rank": 1}, "exclude"),
            ({"positions": [[1]], "moments": "file"}, "protect"),
        ],
    )
    def test_wrong_configurations(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            LokiConfig(**arguments)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"positions": [[1]]}, "1 lists, but the model has 3"),
            ({"positions": [[1], [2], [HIDDEN]]}, f"Row {HIDDEN}"),
            ({"positions": POSITIONS, "protect": 0.5}, "needs `moments`"),
        ],
    )
    def test_configurations_that_do_not_fit_the_model(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            get_peft_model(make_model(), LokiConfig(**arguments))

    def test_merging_into_a_quantized_weight_is_refused(self):
        model = get_peft_model(make_model(), LokiConfig(positions=POSITIONS))
        layer = next(module for module in model.modules() if isinstance(module, LokiLayer))
        layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.to(torch.int8), requires_grad=False)
        with pytest.raises(TypeError, match="quantization"):
            layer.merge()
