"""The probe for layers that mix tokens by something beside their attention: state spaces, convolutions, shifts.

Attention is held still and the earlier tokens are exchanged. Where attention alone mixes tokens, nothing that the last
position sees has changed, in any dtype: the shapes, and so the kernels, are the same.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.kva.attention import Heads, attention_driven_by, causal_attention
from loki.kva.borrowing import input_device
from loki.kva.exactness import check_unmoved_logits
from loki.kva.layers import Layers
from loki.kva.prompt_batch import PromptBatch
from loki.kva.recording import last_logits


@torch.no_grad()
def check_attention_alone_mixes(model: PreTrainedModel, layers: Layers, prompt: list[int]) -> None:
    """Check that the earlier tokens of a prompt reach the last position through attention only.

    Args:
        model: with the attention seam installed.
        layers: its decoder layers.
        prompt: token ids, at least two.

    Raises:
        NotExactError: if they reach it in another way too.
    """
    outputs: dict[int, Tensor] = {}

    def attend(layer: int, heads: Heads) -> Tensor:
        if layer not in outputs:
            outputs[layer] = causal_attention(heads)
        return outputs[layer]

    vocab_size = model.get_input_embeddings().weight.shape[0]
    others = [(token + vocab_size // 2) % vocab_size for token in prompt[:-1]]
    device = input_device(model)
    with attention_driven_by(attend, layers.layers):
        real, exchanged = (last_logits(model, PromptBatch.of([ids], device)) for ids in (prompt, [*others, prompt[-1]]))
    check_unmoved_logits(exchanged, real, model.dtype)
