"""Fixtures of the command-line tests."""

from tests.cli.running import shell

__all__ = ["shell"]
