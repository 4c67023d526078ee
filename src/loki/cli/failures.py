"""Failures of the machine, not of the program: what went wrong, as one line with advice."""

import errno
import os
import re
from pathlib import Path

from loki.errors import out_of_memory

_NO_SPACE = "free some space or choose another --output"
_NO_PERMISSION = "check its permissions or choose another path"
_NO_PLACE = "choose another --output"
_OTHER_PATH = "choose another path"
_STORAGE = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: _NO_PERMISSION,
    errno.ENOTDIR: _NO_PLACE,
    errno.EISDIR: _NO_PLACE,
    errno.EEXIST: _NO_PLACE,
    errno.ENOENT: _NO_PLACE,
    errno.EBUSY: _NO_PLACE,
    errno.ENAMETOOLONG: _OTHER_PATH,
    errno.ELOOP: _OTHER_PATH,
    errno.ENXIO: _OTHER_PATH,
    errno.ENODEV: _OTHER_PATH,
    errno.EINVAL: _OTHER_PATH,
    errno.EIO: "check the disk",
    errno.EFBIG: _NO_SPACE,
    errno.ENOTEMPTY: _NO_PLACE,
    errno.EOPNOTSUPP: _NO_PLACE,
}
# safetensors and h5py only quote the system's error; torch.save only notices that its file stopped growing.
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_QUOTED = re.compile(r"(?:os error |errno = )(\d+)")
_FULL_DISK_SIGNS = ("No space left on device", "unexpected pos", "PytorchStreamWriter")


def explain(error: BaseException) -> str | None:
    """One line for a full disk, a place that may not be written to, or too little memory; None for all else.

    Looks at `error` and at what caused it.
    """
    link: BaseException | None = error
    while link is not None:
        line = _explain_one(link)
        if line is not None:
            return line
        link = link.__cause__ or link.__context__
    return None


def _explain_one(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, OSError) and error.errno in _STORAGE and not _was_missing(error):
        return f"{error.strerror}: {error.filename or 'while writing'}: {_STORAGE[error.errno]}"
    if (quoted := _QUOTED.search(text)) and (number := int(quoted[1])) in _WRITING:
        return f"{os.strerror(number)}: while writing: {_STORAGE[number]}"
    if any(sign in text for sign in _FULL_DISK_SIGNS):
        return "No space left on device: while writing: free some space or choose another --output"
    if out_of_memory(error):
        return (
            "out of memory: choose a smaller --batch-size; when training, also --gradient-checkpointing, a shorter "
            "--max-length, or an adapter with a rank; when analysing, also a smaller --memory-budget"
        )
    return None


def _was_missing(error: OSError) -> bool:
    """Whether a file was to be read that does not exist: that should have been noticed, so it is a bug.

    A file that is to be written fails with the same error only where its folder does not exist.
    """
    return error.errno == errno.ENOENT and not (
        isinstance(error.filename, str) and not Path(error.filename).parent.is_dir()
    )
