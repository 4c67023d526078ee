"""Silencing what libraries print on their own, so that a command's output is its own."""

import warnings

import datasets
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Turn off the progress bars of Transformers and Datasets and their deprecation warnings, for this process."""
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # They deprecate arguments by the names that the oldest supported releases need.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
