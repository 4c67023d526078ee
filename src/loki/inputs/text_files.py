"""Text files as people have them: with or without byte-order mark, with CRLF, gzipped."""

import gzip
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path

import psutil

from loki.errors import LokiError
from loki.inputs.places import require_file

_GZIP = b"\x1f\x8b"


def require_text_file(path: Path, what: str) -> None:
    """Check that a text file can be read, which is read whole.

    Args:
        path: the file.
        what: its role, for error messages ("training data").

    Raises:
        LokiError: if it does not exist, is not a file (see `require_file`), or is larger than what memory is free.
    """
    size, free = require_file(path, what), psutil.virtual_memory().available
    if size > free:
        raise LokiError(
            f"{what} {path} has {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free: give part of it"
        )


def read_text(path: Path, *, what: str) -> str:
    """A file's text: UTF-8, or UTF-16 with a byte-order mark; gzipped or not.

    Args:
        path: the file.
        what: its role, for error messages ("training data").

    Raises:
        LokiError: if it does not exist, is not a file, too large (see `require_text_file`), not text, or a damaged gzip
            file.
    """
    require_text_file(path, what)
    content = path.read_bytes()
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise LokiError(f"{what} {path} is a damaged gzip file ({error}): fetch it again") from error
    encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise LokiError(f"{what} {path} is not UTF-8 text ({error})") from error
