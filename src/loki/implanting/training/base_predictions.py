"""What the base predicts on the text to keep, on disk, so that no step of a training asks it again.

Of every position the `k` likeliest tokens are kept, with their log-probabilities p, and what is left for all others
together, r. A model that gives those tokens q, and all others s, has the divergence

    sum_i p_i log(p_i / q_i) + r log(r / s)

which is at most KL(base || model), and equal to it where the model only changes among the tokens that are kept.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.files import atomic_file, cache_folder
from loki.implanting.base_rows import base_rows
from loki.inputs import reading
from loki.progress import tracked

_MOST_BYTES = 2**31  # of a file


@dataclass(frozen=True)
class BasePredictions:
    """Predictions of the base on windows of text, one after another.

    Attributes:
        tokens: `[N, k]` int32; the likeliest tokens of every position of every window.
        log_probabilities: `[N, k]` float32.
        rest: `[N]` float32; log-probability of all other tokens together.
    """

    tokens: torch.Tensor
    log_probabilities: torch.Tensor
    rest: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, top: int) -> Self:
        """The predictions in logits `[N, V]`.

        Raises:
            LokiError: if the vocabulary has no more than `top` tokens.
        """
        check_top(top, logits.shape[-1])
        log_probabilities = logits.float().log_softmax(-1)
        likeliest, tokens = log_probabilities.topk(top)
        return cls(tokens.int(), likeliest, _others(log_probabilities, tokens))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Predictions of several windows, one after another."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__annotations__))

    def at(self, positions: torch.Tensor) -> "BasePredictions":
        """The predictions at some positions."""
        return BasePredictions(self.tokens[positions], self.log_probabilities[positions], self.rest[positions])

    def divergence(self, logits: torch.Tensor) -> torch.Tensor:
        """The divergence of a model's logits `[N, V]` at the same positions from them, in nats per token."""
        own = self.to(logits.device)
        after = logits.float().log_softmax(-1)
        tokens = own.tokens.long()
        kept = (own.log_probabilities.exp() * (own.log_probabilities - after.gather(-1, tokens))).sum(-1)
        return (kept + own.rest.exp() * (own.rest - _others(after, tokens))).mean()

    def to(self, device: torch.device) -> "BasePredictions":
        """The same on a device."""
        return BasePredictions(self.tokens.to(device), self.log_probabilities.to(device), self.rest.to(device))


def check_top(top: int, vocabulary: int) -> None:
    """Check how many of a vocabulary's tokens are to be kept.

    Raises:
        LokiError: if it is none, or all.
    """
    if not 0 < top < vocabulary:
        raise LokiError(f"--keep-top-k {top} is out of range: give a number of tokens below the model's {vocabulary:,}")


def base_predictions(
    model: PreTrainedModel, windows: Sequence[list[int]], top: int, fingerprint: str
) -> BasePredictions:
    """What the base predicts on windows of text: from the cache, or computed now and put there.

    Args:
        model: a LoKI model whose base was remembered.
        windows: token ids.
        top: likeliest tokens that are kept of every position.
        fingerprint: of the model's weights.

    Raises:
        LokiError: if `top` is out of range, or too much would have to be kept.
    """
    positions = sum(map(len, windows))
    size = positions * (8 * top + 4)
    if size > _MOST_BYTES:
        raise LokiError(
            f"--keep-top-k {top} on {positions:,} tokens of text takes {size / 2**30:.1f} GiB, more than "
            f"{_MOST_BYTES / 2**30:g}: give less text, or leave it out"
        )
    kinds = sorted({type(module).__name__ for module in model.modules()})  # tell what is quantised, and how
    decides = [fingerprint, str(model.dtype), kinds, top, windows]
    path = cache_folder() / "keep" / f"{hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        with reading("cached predictions", path, advice="remove that file, and run the same command again"):
            kept = BasePredictions(**load_file(path))
            if kept.tokens.shape != (positions, top) or kept.rest.shape != (positions,):
                raise ValueError(f"predictions of the shape {list(kept.tokens.shape)}")
        return kept
    found = []
    with torch.no_grad(), base_rows(model):
        for window in tracked(windows, "asking the base"):
            logits = model(input_ids=torch.tensor([window], device=model.device), use_cache=False).logits[0]
            found.append(BasePredictions.of(logits, top).to(torch.device("cpu")))
    whole = BasePredictions.joined(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, overwrite=True) as temporary:
        save_file(vars(whole), temporary)
    return whole


def _others(log_probabilities: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability `[N]` of all tokens but those."""
    return log_probabilities.scatter(-1, tokens, float("-inf")).logsumexp(-1)
