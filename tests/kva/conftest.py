"""Fixtures of the analysis tests."""

from tests.kva.fake_engine import engine

__all__ = ["engine"]
