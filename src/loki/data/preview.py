"""What the model will see, for people: examples as the chat template renders them, and figures over all of them."""

from dataclasses import dataclass

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from loki.data.fitting import TrainingData, quantile

TRAINED_STYLE = "bold green"
MARKS = "\u27e6\u27e7"
_EDGE = 600  # characters shown of a long prompt's beginning, and of its end


@dataclass(frozen=True)
class DataFigures:
    """Figures over training data.

    Attributes:
        examples: their number.
        tokens: of all together, before examples are cut.
        trained_tokens: those that loss is taken on.
        median: tokens of an example.
        quantile_95: tokens that 95% of the examples do not exceed.
        longest: tokens of the longest.
        cut: examples that lose the end of their answer at the maximal length.
        ended: examples that train a token that ends the turn.
    """

    examples: int
    tokens: int
    trained_tokens: int
    median: int
    quantile_95: int
    longest: int
    cut: int
    ended: int


def figures(data: TrainingData) -> DataFigures:
    """The figures of training data."""
    middle, high, longest = (quantile(data.lengths, part) for part in (0.5, 0.95, 1.0))
    return DataFigures(
        examples=len(data.dataset),
        tokens=sum(data.lengths),
        trained_tokens=sum(map(sum, data.dataset["completion_mask"])),
        median=middle,
        quantile_95=high,
        longest=longest,
        cut=data.cut,
        ended=data.ended,
    )


def rendered(
    data: TrainingData, index: int, tokenizer: PreTrainedTokenizerBase, *, whole: bool = False, marks: bool = False
) -> Text:
    """An example as a text, special tokens included, with the trained ones in colour.

    Args:
        data: the training data.
        index: of the example.
        tokenizer: the model's.
        marks: put MARKS around the trained ones as well, for where there is no colour.
        whole: show all of a long prompt; else its middle is left out.
    """
    example = data.dataset[index]
    text = Text()
    start = 0
    ids, mask = example["input_ids"], example["completion_mask"]
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[start]:
            part = tokenizer.decode(ids[start:end], skip_special_tokens=False)
            if not whole and not mask[start] and len(part) > 2 * _EDGE:
                left_out = len(part) - 2 * _EDGE
                part = f"{part[:_EDGE]} [... {left_out} characters ...] {part[-_EDGE:]}"
            if marks and mask[start]:
                part = MARKS[0] + part + MARKS[1]
            text.append(part, style=TRAINED_STYLE if mask[start] else "")
            start = end
    return text
