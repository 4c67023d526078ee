"""Fetching from the hub and uploading to it, with every failure as one line."""

import errno
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.utils._validators import validate_repo_id

from loki.errors import LokiError, one_line


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


def check_upload(repository: str) -> None:
    """Refuse now what `upload` would refuse after all the work: a name that is none, nobody who is logged in.

    Args:
        repository: hub id to upload to.

    Raises:
        LokiError: if it cannot be uploaded to.
    """
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise LokiError(f"--push-to-hub {repository} is no hub id: give NAME or OWNER/NAME") from error
    if get_token() is None:
        raise LokiError("--push-to-hub needs you to be logged in to the hub: run `hf auth login`, or set HF_TOKEN")


def upload(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a finished directory to a model repository, which is made if there is none.

    Args:
        folder: what to upload, all of it in one commit.
        repository: hub id.
        private: make a new repository private.

    Returns:
        The repository's address.

    Raises:
        LokiError: for whatever keeps it from being uploaded; the folder stays as it is.
    """
    api = HfApi()
    try:
        found = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=found.repo_id, folder_path=folder, commit_message="Upload with LoKI")
    except Exception as error:  # see `fetch`
        raise LokiError(
            f"{folder} was not uploaded to {repository} ({type(error).__name__}: {one_line(error)}): it is complete, "
            f"so upload it by itself with `hf upload {repository} {folder}`"
        ) from error
    return str(found)
