"""What a model does on given texts."""

DEFAULT_WINDOW = 256
"""Tokens per window of text, see `loki.metrics.text`; it stands here because the command line reads it."""
