"""Failures of the machine, not of the program: what went wrong, as one line with advice."""

import errno

_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
# safetensors and h5py only quote the system's message; torch.save only notices that its file stopped growing.
_FULL_DISK_SIGNS = ("os error 28", "errno = 28", "No space left on device", "unexpected pos", "PytorchStreamWriter")
_NO_MEMORY_SIGNS = ("out of memory", "can't allocate memory")


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
    if isinstance(error, OSError) and error.errno in _STORAGE:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        place = error.filename or "while writing"
        advice = (
            "free some space or choose another --output" if full else "check its permissions or choose another path"
        )
        return f"{error.strerror}: {place}: {advice}"
    if any(sign in text for sign in _FULL_DISK_SIGNS):
        return "No space left on device: while writing: free some space or choose another --output"
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in _NO_MEMORY_SIGNS):
        return (
            "out of memory: choose a smaller --batch-size; when training, also --gradient-checkpointing, a shorter "
            "--max-length, or an adapter with a rank; when analysing, also a smaller --memory-budget"
        )
    return None
