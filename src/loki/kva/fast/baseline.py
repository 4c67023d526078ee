"""The activation baseline of the definition `captum`: MLP outputs on a sequence of token id 0."""

from torch import Tensor
from transformers import PreTrainedModel

from loki.kva.fast.layers import Layers
from loki.kva.fast.prompt_batch import PromptBatch
from loki.kva.fast.record import record_outputs
from loki.models.architectures import max_positions, text_config

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def depends_on_length(model: PreTrainedModel) -> bool:
    """Whether a token's hidden states depend on the tokens after it, through rotary embeddings that know the length."""
    parameters = getattr(text_config(model.config), "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return any(kind.get("rope_type") in _LENGTH_DEPENDENT_ROPE for kind in [parameters, *nested])


class ZeroTokenBaseline:
    """z0 of every layer, computed once per power of two of the length and kept.

    By causality, the outputs on a long sequence of token id 0 begin with those on a shorter one. To the last bit they
    may differ, so which sequence serves a batch depends on the batch alone, not on what was computed before.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._exact_length = depends_on_length(model)
        self._outputs: dict[int, list[Tensor]] = {}

    def outputs(self, layers: Layers, batch: PromptBatch) -> list[Tensor]:
        """z0 at every token's position in its own prompt, `[B, T, D]` or `[1, T, D]` by layer.

        Args:
            layers: the model's layers, with the attention seam installed.
            batch: the prompts.
        """
        length = self._length_for(batch.length)
        if length not in self._outputs:
            if self._exact_length:
                self._outputs.clear()
            zeros = PromptBatch.of([[0] * length], batch.input_ids.device)
            self._outputs[length] = record_outputs(self._model, layers, zeros)
        whole = self._outputs[length]
        if batch.attention_mask is None:
            return [outputs[:, : batch.length] for outputs in whole]
        return [outputs[0][batch.position_ids.to(outputs.device)] for outputs in whole]

    def _length_for(self, length: int) -> int:
        if self._exact_length:
            return length
        longest = max_positions(self._model.config) or length
        return max(length, min(1 << (length - 1).bit_length(), longest))
