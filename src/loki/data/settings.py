"""Which part of the data is taken, and how conversations are rendered."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSettings:
    """What is to be said of training data beside where it is.

    Attributes:
        data_split: which split of the training data, where it has several; None takes `train`.
        data_subset: which subset (configuration) of a hub data set, for training and held-out data.
        eval_split: which split of the held-out data, where it has several; None takes `train`.
        chat_template: file with a Jinja chat template, in place of the tokenizer's own, or hermes (ChatML with tools);
            the trained model keeps it.
    """

    data_split: str | None = None
    data_subset: str | None = None
    eval_split: str | None = None
    chat_template: str | None = None
