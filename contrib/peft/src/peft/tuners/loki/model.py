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

from __future__ import annotations

import random

import torch
from torch import nn

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

from .config import LokiConfig
from .layer import Linear, LokiLayer
from .moments import least_used_directions


# Upstream this is TRANSFORMERS_MODELS_TO_LOKI_TARGET_MODULES_MAPPING, in peft/utils/constants.py.
TARGET_MODULES = {
    **dict.fromkeys(
        ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "olmo2"),
        ["down_proj"],
    ),
    "gpt_neox": ["dense_4h_to_h"],
    "opt": ["fc2"],
    "phi": ["fc2"],
}


class LokiModel(BaseTuner):
    """
    Creates a LoKI (Low-damage Knowledge Implanting) model from a pretrained model.

    The method is described in https://arxiv.org/abs/2505.22120.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model to be adapted.
        config ([`LokiConfig`]): The configuration of the LoKI model.
        adapter_name (`str`): The name of the adapter, defaults to `"default"`.

    Returns:
        `torch.nn.Module`: The LoKI model.

    Example:

        ```py
        >>> from transformers import AutoModelForCausalLM
        >>> from peft import LokiConfig, get_peft_model

        >>> base_model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
        >>> config = LokiConfig(quota=10)
        >>> model = get_peft_model(base_model, config)
        ```

    **Attributes**:
        - **model** ([`~transformers.PreTrainedModel`]) -- The model to be adapted.
        - **peft_config** ([`LokiConfig`]): The configuration of the LoKI model.
    """

    prefix: str = "loki_"
    tuner_layer_cls = LokiLayer
    target_module_mapping = TARGET_MODULES

    def _prepare_adapter_config(self, peft_config: LokiConfig, model_config: dict) -> LokiConfig:
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        targets = {
            name: module
            for name, module in self.model.named_modules()
            if BaseTuner._check_target_module_exists(peft_config, name)
        }
        if peft_config.positions is None:
            peft_config.positions = [_draw(peft_config, n, module) for n, module in enumerate(targets.values())]
        if targets and len(peft_config.positions) != len(targets):
            raise ValueError(
                f"`positions` has {len(peft_config.positions)} lists, but the model has {len(targets)} target modules."
            )
        self._rows_by_module = dict(zip(targets, peft_config.positions))
        self._order = {name: number for number, name in enumerate(targets)}
        if peft_config.protect is not None and peft_config.moments is None and peft_config.directions_shape is None:
            raise ValueError("`protect` needs `moments`, see `peft.tuners.loki.measure_second_moments`.")
        return peft_config

    # Not static, unlike those of other methods: a target module whose list of rows is empty is no target.
    def _check_target_module_exists(self, peft_config: LokiConfig, key: str) -> bool:
        if not self._rows_by_module:
            return bool(BaseTuner._check_target_module_exists(peft_config, key))
        return bool(self._rows_by_module.get(key))

    def _create_and_replace(
        self,
        loki_config: LokiConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs,
    ) -> None:
        if current_key is None:
            raise ValueError("Current Key shouldn't be `None`")
        rows = self._rows_by_module[current_key]
        directions = self._directions(loki_config, current_key)
        if isinstance(target, LokiLayer):
            target.update_layer(adapter_name, rows, directions, loki_config, inference_mode=loki_config.inference_mode)
        else:
            new_module = Linear(target, adapter_name, rows, directions, loki_config)
            if adapter_name not in self.active_adapter:
                # adding an additional adapter: it is not automatically trainable
                new_module.requires_grad_(False)
            self._replace_module(parent, target_name, new_module, target)

    def _directions(self, config: LokiConfig, key: str) -> torch.Tensor | None:
        if config.protect is None:
            return None
        if config.moments is None:  # they come with the adapter's weights
            return torch.full(config.directions_shape, torch.nan, device="cpu")
        directions = least_used_directions(config.moments, self._order[key], config.protect)
        config.directions_shape = list(directions.shape)
        return directions


def _draw(config: LokiConfig, number: int, module: nn.Module) -> list[int]:
    """Rows drawn at random; the same for the same seed, whatever else draws."""
    base_layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    count = max(1, int(config.quota * base_layer.out_features // 100))
    return sorted(random.Random(f"{config.seed} {number}").sample(range(base_layer.out_features), count))
