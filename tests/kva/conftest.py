"""Fixtures of the analysis tests."""

from tests.kva.analyst import analyst, interrupted
from tests.kva.fake_engine import engine

__all__ = ["analyst", "engine", "interrupted"]
