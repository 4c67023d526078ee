"""Fixtures of the analysis tests."""

from tests.analysis.analyst import analyst, interrupted
from tests.analysis.fake_engine import engine

__all__ = ["analyst", "engine", "interrupted"]
