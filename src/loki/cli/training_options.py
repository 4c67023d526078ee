"""Options of training that `loki train` and `loki run` share."""

from typing import Annotated

import typer

Epochs = Annotated[float, typer.Option("--epochs", help="Passes over the training data.")]
MaxSteps = Annotated[int, typer.Option("--max-steps", help="Optimiser steps, instead of epochs.")]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", help="Peak learning rate. Default: 1e-5 at quota 30, more for a smaller quota."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Training examples per device and step.")]
MaxLength = Annotated[int, typer.Option("--max-length", help="Tokens per training example; longer ones are cut.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the training data's order.")]
