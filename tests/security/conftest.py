"""Fixtures of the attacks."""

from tests.cli.running import shell

__all__ = ["shell"]
