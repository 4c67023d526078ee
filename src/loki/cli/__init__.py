"""The command line: parses arguments and calls the library, nothing else."""

from loki.cli.main import main

__all__ = ["main"]
