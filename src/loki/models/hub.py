"""Fetching from the hub, with every failure as one line."""

import errno
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from loki.errors import LokiError


def fetch(repository: str, problem: str, advice: str, **options: Any) -> Path:
    """The local folder of a repository's snapshot, fetched now or found in the cache.

    Args:
        repository: its hub id.
        problem: what it means that it cannot be had, for the error message.
        advice: what to do then.
        **options: further arguments of `huggingface_hub.snapshot_download`.

    Raises:
        LokiError: for whatever keeps the snapshot from being had, except a full disk.
    """
    try:
        return Path(snapshot_download(repository, **options))
    except Exception as error:  # the errors of the hub, of its HTTP library and of hf_xet have no class in common
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise LokiError(f"{repository} {problem} ({type(error).__name__}): {advice}") from error
