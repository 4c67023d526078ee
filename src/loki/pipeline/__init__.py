"""All phases in one go: their settings, their order in a run directory, and what they would take."""

from loki.pipeline.phases import RunResult
from loki.pipeline.run_all import run
from loki.pipeline.settings import RunSettings, read_config

__all__ = ["RunResult", "RunSettings", "read_config", "run"]
