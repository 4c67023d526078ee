"""Single options that several commands share; groups of them are the fields of classes (`loki.cli.option_groups`)."""

from pathlib import Path
from typing import Annotated

import typer

BaseModel = Annotated[str, typer.Argument(help="Base model: a local directory or hub id.", show_default=False)]
Trainable = Annotated[
    str, typer.Argument(help="LoKI model directory; or, with --positions, an ordinary model.", show_default=False)
]
PositionsOfOrdinary = Annotated[Path | None, typer.Option("--positions", help="Positions file, for an ordinary model.")]
Positions = Annotated[Path, typer.Option("--positions", help="Positions file made by `loki select`.")]
Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="Training data: a file (JSONL, JSON, CSV, parquet, text; gzipped or not), a directory of such, a "
        "save_to_disk folder, or a hub data set. May be repeated, with shares: a.jsonl:0.7.",
        show_default=False,
    ),
]
Moments = Annotated[
    Path | None, typer.Option("--moments", help="Second moments made by `loki moments`, for --protect.")
]
Protect = Annotated[
    float | None,
    typer.Option("--protect", help="Share of the input directions, the most used ones, that training leaves alone."),
]
Experts = Annotated[
    str | None,
    typer.Option(
        "--experts",
        help="Which rows are meant where the model has experts: shared (of the MLP that every token goes through), "
        "dense (of the layers without experts alone) or all (every expert's as well).",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings along.")
]
