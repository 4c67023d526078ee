"""Options of training data that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="Training data: a file (JSONL, JSON, CSV, parquet, text; gzipped or not), a directory of such, a "
        "save_to_disk folder, or a hub data set. May be repeated, with shares: a.jsonl:0.7.",
        show_default=False,
    ),
]
DataSplit = Annotated[
    str | None,
    typer.Option("--data-split", help="Which split of the data, where there are several. Default: train."),
]
DataSubset = Annotated[str | None, typer.Option("--data-subset", help="Which subset of a hub data set.")]
ChatTemplate = Annotated[
    Path | None,
    typer.Option("--chat-template", help="File with a Jinja chat template, in place of the tokenizer's own."),
]
