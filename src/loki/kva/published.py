"""The published project's model classes: a Llama or Qwen2 that attributes its own predictions."""

from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from loki.errors import LokiError
from loki.kva.auto import make_attributor
from loki.kva.settings import DEFAULT_STEPS, PUBLISHED_RULES, AttributionSettings, Definition, IgMethod


class _AttributesItself(PreTrainedModel):  # type: ignore[misc]  # untyped base
    """A causal language model with Knowledge Vector Attribution as a method."""

    def compute_integrated_gradients(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        target_token_idx: int = -1,
        predicted_label: int | None = None,
        steps: int = DEFAULT_STEPS,
        method: str = PUBLISHED_RULES[Definition.CAPTUM],
    ) -> list[Tensor]:
        """Integrated gradients of one prediction along every layer's MLP output.

        The numbers are those of Captum's `LayerIntegratedGradients` of `mlp.down_proj` with a sequence of token id 0
        as the baseline, at the position of the prediction.

        Args:
            input_ids: one prompt, `[1, T]` or `[T]`.
            attention_mask: of the same shape, 0 on padding; None means there is none.
            target_token_idx: position in `input_ids` whose prediction is attributed; -1 is the last.
            predicted_label: token id whose softmax probability is attributed; None means the model's own argmax.
            steps: points of the integration rule.
            method: Captum's name of the rule, one of `loki.kva.settings.IG_METHODS`.

        Returns:
            One `[hidden]` float32 tensor per layer, on the CPU.

        Raises:
            LokiError: for more than one prompt, a position on padding, or an argument that is not allowed.
        """
        prompt, position = _unpadded(input_ids, attention_mask, target_token_idx)
        label = None if predicted_label is None else int(predicted_label)
        settings = AttributionSettings(steps=steps, ig_method=IgMethod(method), position=position)
        with make_attributor(self, settings) as attributor:
            (attribution,) = attributor.attribute([prompt], [label])
        return list(attribution.scores)


class KVALlamaForCausalLM(_AttributesItself, LlamaForCausalLM):  # type: ignore[misc]  # untyped base
    """`LlamaForCausalLM` with `compute_integrated_gradients`; load it with `from_pretrained` like its base."""


class KVAQwenForCausalLM(_AttributesItself, Qwen2ForCausalLM):  # type: ignore[misc]  # untyped base
    """`Qwen2ForCausalLM` (Qwen2 and Qwen2.5) with `compute_integrated_gradients`."""


def _unpadded(input_ids: Tensor, attention_mask: Tensor | None, position: int) -> tuple[list[int], int]:
    """The prompt's token ids without padding, and the position among them."""
    if input_ids.numel() != input_ids.shape[-1]:
        raise LokiError(f"input_ids has shape {tuple(input_ids.shape)}: give one prompt at a time, [1, T]")
    ids = input_ids.flatten().tolist()
    real = [1] * len(ids) if attention_mask is None else attention_mask.flatten().tolist()
    if len(real) != len(ids):
        raise LokiError(f"attention_mask has {len(real)} positions, input_ids has {len(ids)}: give them equal shapes")
    index = position + len(ids) if position < 0 else position
    if not 0 <= index < len(ids) or not real[index]:
        raise LokiError(f"target_token_idx is {position}, which is not a token of this prompt of {len(ids)} positions")
    return [token for token, kept in zip(ids, real, strict=True) if kept], sum(map(bool, real[: index + 1])) - 1
