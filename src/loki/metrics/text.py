"""Loss of a model on texts, and how far another model's predictions have moved from it.

A text is measured in *windows*: runs of at most `window` tokens, each after the tokenizer's start token, so that every
token of every text is predicted exactly once, however long the text is. Windows are also the blocks that intervals are
made of (`loki.evaluation.statistics`): tokens of one window depend on each other, windows hardly do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.data.fitting import length_within
from loki.errors import LokiError
from loki.metrics import DEFAULT_WINDOW
from loki.metrics.modes import evaluating
from loki.models.architectures import text_config

_LOGITS_BYTES = 2**28  # of one batch of one model; what is computed from them takes a few times as much


@dataclass(frozen=True)
class Windows:
    """Texts as token ids, ready for a model.

    Attributes:
        ids: of every window: one token that is given, then those that are predicted.
        texts: which text every window is a part of.
        bytes: length of every text in UTF-8.
    """

    ids: list[list[int]]
    texts: list[int]
    bytes: list[int]

    @property
    def tokens(self) -> torch.Tensor:
        """`[W]`; how many tokens of every window are predicted."""
        return torch.tensor([len(ids) - 1 for ids in self.ids])


@dataclass(frozen=True)
class TextLoss:
    """The negative log-likelihood of texts, in nats.

    Attributes:
        nll: `[W]` float64; the sum over the tokens of every window.
        windows: what was measured.
    """

    nll: torch.Tensor
    windows: Windows = field(repr=False)

    @property
    def loss(self) -> float:
        """Mean per token, in nats; the cross-entropy that a trainer calls loss."""
        return float(self.nll.sum() / self.windows.tokens.sum())

    def nll_by_text(self) -> torch.Tensor:
        """`[N]` float64; the sum over all tokens of every text."""
        sums = torch.zeros(len(self.windows.bytes), dtype=torch.float64)
        return sums.index_add(0, torch.tensor(self.windows.texts), self.nll)


@dataclass(frozen=True)
class TextDivergence:
    """Two models on the same tokens.

    Attributes:
        base: loss of the model before.
        new: loss of the model after.
        kl: `[W]` float64; KL(base || new) in nats, summed over the predicted tokens of every window.
    """

    base: TextLoss
    new: TextLoss
    kl: torch.Tensor

    @property
    def kl_per_token(self) -> float:
        """Mean KL(base || new) per token, in nats."""
        return float(self.kl.sum() / self.base.windows.tokens.sum())


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int, window: int = DEFAULT_WINDOW
) -> Windows:
    """Split texts into windows.

    Every window begins with the tokenizer's beginning-of-sequence token, or its end-of-sequence token where it has no
    other (as lm-evaluation-harness does for perplexity). A tokenizer with neither predicts from the token before, and
    the first token of each text goes unmeasured.

    Args:
        tokenizer: the model's.
        texts: what to measure; texts without a token are passed over.
        max_length: the most tokens that the model takes.
        window: tokens per window, start token included; `max_length` where that is less.

    Raises:
        LokiError: if a window is too short to predict anything, or no text has a token to predict.
    """
    size = min(window, max_length) - 1
    if size < 1:
        raise LokiError(f"a window of {size + 1} tokens predicts nothing: give at least 2")
    start_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    first = 0 if start_id is not None else 1
    windows, owners = [], []
    for number, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(first, len(ids), size):
            given = ids[start - 1] if start_id is None else start_id
            windows.append([given, *ids[start : start + size]])
            owners.append(number)
    if not windows:
        raise LokiError(f"the {len(texts)} given texts hold no token to predict: give some text")
    return Windows(windows, owners, [len(text.encode()) for text in texts])


def encode_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, window: int = DEFAULT_WINDOW
) -> Windows:
    """`encode_texts` to no more than the positions of `model`."""
    return encode_texts(tokenizer, texts, max_length=length_within(model.config, window), window=window)


@torch.no_grad()
def text_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    window: int = DEFAULT_WINDOW,
) -> TextLoss:
    """The model's loss on `texts`.

    Args:
        model: a causal language model; it is left in the mode it came in.
        tokenizer: its tokenizer.
        texts: what to measure. A text that is longer than a window is split, not cut.
        window: tokens per window, see `encode_texts`.

    Raises:
        LokiError: if there is nothing to predict.
    """
    windows = encode_for(model, tokenizer, texts, window=window)
    nll = torch.zeros(len(windows.ids), dtype=torch.float64)
    with evaluating(model):
        for batch, input_ids, predicted in _batches(windows, model):
            nll[batch] = _nll(_log_probabilities(model, input_ids), input_ids, predicted)
    return TextLoss(nll, windows)


@torch.no_grad()
def text_divergence(
    base: PreTrainedModel,
    new: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    window: int = DEFAULT_WINDOW,
) -> TextDivergence:
    """Losses of two models and KL(base || new), from one pass of each over the same tokens.

    Args:
        base: the model before; both are left in the mode they came in.
        new: the model after. Its tokenizer must be the same (`loki.metrics.tokenizers.same_tokenizer`).
        tokenizer: of both.
        texts: what to measure. A text that is longer than a window is split, not cut.
        window: tokens per window, see `encode_texts`.

    Raises:
        LokiError: if there is nothing to predict, or the models predict vocabularies of different sizes.
    """
    narrower = min((base, new), key=lambda model: length_within(model.config, window))
    windows = encode_for(narrower, tokenizer, texts, window=window)
    losses = torch.zeros(2, len(windows.ids), dtype=torch.float64)
    kl = torch.zeros(len(windows.ids), dtype=torch.float64)
    with evaluating(base), evaluating(new):
        for batch, input_ids, predicted in _batches(windows, base):
            before = _log_probabilities(base, input_ids)
            after = before if new is base else _log_probabilities(new, input_ids).to(before.device)
            if before.shape != after.shape:
                raise LokiError(
                    f"the models predict {before.shape[-1]} and {after.shape[-1]} tokens, so their predictions cannot "
                    "be compared: use models with the same vocabulary"
                )
            losses[0, batch] = _nll(before, input_ids, predicted)
            losses[1, batch] = _nll(after, input_ids, predicted)
            # What the base holds for impossible adds nothing, whatever the other holds it for.
            terms = torch.where(before == -torch.inf, 0.0, before.exp() * (before - after))
            kl[batch] = (terms.sum(-1).cpu().double() * predicted).sum(-1)
    return TextDivergence(TextLoss(losses[0], windows), TextLoss(losses[1], windows), kl)


def _batches(windows: Windows, model: PreTrainedModel) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Indices `[B]` of windows of like length, their ids `[B, T]` padded on the right, and `[B, T-1]` what counts.

    With causal attention, padding on the right cannot change what stands before it, so no attention mask is needed.
    """
    order = sorted(range(len(windows.ids)), key=lambda index: len(windows.ids[index]), reverse=True)
    vocabulary: int = text_config(model.config).vocab_size
    while order:
        length = len(windows.ids[order[0]])
        size = max(1, _LOGITS_BYTES // (4 * vocabulary * length))
        batch, order = order[:size], order[size:]
        input_ids = torch.zeros(len(batch), length, dtype=torch.long)
        lengths = torch.tensor([len(windows.ids[index]) for index in batch])
        for row, index in enumerate(batch):
            input_ids[row, : lengths[row]] = torch.tensor(windows.ids[index])
        yield batch, input_ids, torch.arange(1, length) < lengths[:, None]


def _log_probabilities(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """`[B, T-1, V]` float32 (float64 of a float64 model): of every token but the first, given those before it."""
    logits: torch.Tensor = model(input_ids=input_ids.to(model.device), use_cache=False).logits[:, :-1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _nll(log_probabilities: torch.Tensor, input_ids: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    targets = input_ids[:, 1:, None].to(log_probabilities.device)
    per_token = -log_probabilities.gather(-1, targets).squeeze(-1).cpu().double()
    return torch.where(predicted, per_token, 0.0).sum(-1)
