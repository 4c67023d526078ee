"""The activation baseline of the definition `captum`: MLP outputs on a sequence of token id 0."""

from torch import Tensor
from transformers import PreTrainedModel

from loki.kva.layers import Layers
from loki.kva.prompt_batch import PromptBatch
from loki.kva.recording import record_outputs
from loki.models.architectures import text_config

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def depends_on_length(model: PreTrainedModel) -> bool:
    """Whether a token's hidden states depend on the tokens after it, through rotary embeddings that know the length."""
    parameters = getattr(text_config(model.config), "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return any(kind.get("rope_type") in _LENGTH_DEPENDENT_ROPE for kind in [parameters, *nested])


class ZeroTokenBaseline:
    """z0 of every layer, computed once per length and kept.

    By causality, the outputs on a long sequence of token id 0 begin with those on a shorter one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._exact_length = depends_on_length(model)
        self._outputs: list[Tensor] = []

    def outputs(self, layers: Layers, batch: PromptBatch) -> list[Tensor]:
        """z0 at every token's position in its own prompt, `[B, T, D]` or `[1, T, D]` by layer.

        Args:
            layers: the model's layers, with the attention seam installed.
            batch: the prompts.
        """
        known = self._outputs[0].shape[1] if self._outputs else 0
        if known < batch.length or (self._exact_length and known != batch.length):
            zeros = PromptBatch.of([[0] * batch.length], batch.input_ids.device)
            self._outputs = record_outputs(self._model, layers, zeros)
        if batch.attention_mask is None:
            return [outputs[:, : batch.length] for outputs in self._outputs]
        return [outputs[0][batch.position_ids.to(outputs.device)] for outputs in self._outputs]
