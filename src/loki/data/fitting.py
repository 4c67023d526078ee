"""Whether training examples fit the model: its chat template takes them, and their answers lie within its reach."""

from typing import Any

from jinja2 import TemplateError
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from loki.data.examples import TrainingData
from loki.errors import LokiError, one_line
from loki.models.architectures import max_positions


def length_within(config: PretrainedConfig, max_length: int) -> int:
    """Tokens per example: `max_length`, or the number of positions where the model has fewer."""
    return min(max_length, max_positions(config) or max_length)


def fit_to_model(data: TrainingData, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TrainingData:
    """The examples of which at least one token of the answer is trained.

    TRL cuts examples at `max_length` tokens. Of one whose prompt is that long nothing is left to learn; it is dropped
    and counted.

    Args:
        data: conversations (for a tokenizer with a chat template) or texts.
        tokenizer: the model's.
        max_length: tokens per example.

    Raises:
        LokiError: if the chat template refuses a conversation, with its line, or no example is left.
    """
    examples = data.dataset.to_list()
    prompts = [_prompt(example, tokenizer, line) for example, line in zip(examples, data.lines, strict=True)]
    conversations = not isinstance(examples[0]["prompt"], str)
    encoded = tokenizer(prompts, add_special_tokens=not conversations)["input_ids"]
    kept = [index for index, tokens in enumerate(encoded) if len(tokens) < max_length]
    if len(kept) == len(examples):
        return data
    too_long = {f"whose answer begins beyond --max-length {max_length}": len(examples) - len(kept)}
    if not kept:
        raise LokiError(f"every one of the {len(examples)} training examples is one {next(iter(too_long))}: raise it")
    return TrainingData(data.dataset.select(kept), [data.lines[index] for index in kept], data.dropped | too_long)


def _prompt(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase, line: int) -> str:
    """The prompt as a text. Of a conversation, what the template makes of the whole is looked at too."""
    prompt = example["prompt"]
    if isinstance(prompt, str):
        return prompt
    try:
        tokenizer.apply_chat_template([*prompt, *example["completion"]], tokenize=False)
        return str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))
    except (TemplateError, TypeError, ValueError) as error:
        raise LokiError(
            f"training data, line {line}: the tokenizer's chat template refuses this conversation ({one_line(error)})"
        ) from error
