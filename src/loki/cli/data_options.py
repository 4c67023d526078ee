"""The option `--data`, which several commands share."""

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
